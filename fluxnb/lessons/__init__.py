"""What the notebooks need beside the model: exercises that are checked, and claims that are counted."""
