"""Evaluation of pocket models: sampling, measurements with confidence intervals, and acceptance targets."""
