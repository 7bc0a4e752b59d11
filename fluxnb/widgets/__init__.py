"""Notebook widgets, built on anywidget. They take records, or a callable that generates them, and never a model.

explore, Explorer  a grid: rows, columns and pages to choose, comparison, stars, a slider over sigma
scrub, Scrubber    one slider over sigma for one or several trajectories
canvas, Canvas     a plane in which points are drawn; `.points` is the drawing
shape              the points of a named shape: two moons, ring, spiral, letters, scribble
Lab                a form for prompts, seeds and steps, with pictures as they are generated; `fluxnb.lab` opens one
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
