"""The exercises of the notebooks, three for each, as data."""
