"""Sampling a recipe and recording what happens at every step."""
