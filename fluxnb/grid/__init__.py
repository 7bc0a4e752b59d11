"""Grids of images: axes, runner, store, cost estimate and sweep."""
