"""Frozen values without a model: Recipe, Keep, Step, Trajectory, Film, Cell and Sweep.

Their tensors are detached copies on the CPU. They can be pickled, deep-copied and opened without a GPU. The elements of
a tensor are not protected; do not write into them.
"""

from fluxnb.records.film import Film
from fluxnb.records.keep import BLOCK_GROUPS, KEPT_TENSORS, Keep
from fluxnb.records.sweep import Cell, Sweep
from fluxnb.records.trajectory import STEP_QUANTITIES, Step, Trajectory

__all__ = ["BLOCK_GROUPS", "KEPT_TENSORS", "STEP_QUANTITIES", "Cell", "Film", "Keep", "Step", "Sweep", "Trajectory"]
