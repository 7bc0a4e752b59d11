"""Notebook widgets. They take records, or a callable that returns records, and never a model."""

from fluxnb.widgets.explore import Explorer, explore
from fluxnb.widgets.lab import Lab
from fluxnb.widgets.scrub import Scrubber, scrub

__all__ = ["Explorer", "Lab", "Scrubber", "explore", "scrub"]
