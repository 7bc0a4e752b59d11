"""Widgets for a notebook: they are handed records, or a callable that makes them, and never see the model."""

from fluxnb.widgets.explore import Explorer, explore
from fluxnb.widgets.lab import Lab
from fluxnb.widgets.scrub import Scrubber, scrub

__all__ = ["Explorer", "Lab", "Scrubber", "explore", "scrub"]
