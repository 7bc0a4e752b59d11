"""What differs between model families: defaults, geometry, guidance."""
