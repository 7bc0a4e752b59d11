"""Grids of pictures: axes, runner, store, cost estimate, sweep."""
