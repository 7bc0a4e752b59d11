"""What a run leaves behind: Step, Trajectory, Film, Cell, Sweep, and Keep, which says how much of it.

Records are frozen. Their tensors are detached copies on the CPU, and nothing in them refers to a pipeline, so they
outlive the model and open anywhere. Frozen does not freeze a tensor's numbers: do not write into them.
"""

from fluxnb.records.film import Film
from fluxnb.records.keep import GROUPS, KINDS, Keep
from fluxnb.records.sweep import Cell, Sweep
from fluxnb.records.trajectory import SHOWN, Step, Trajectory

__all__ = ["GROUPS", "KINDS", "SHOWN", "Cell", "Film", "Keep", "Step", "Sweep", "Trajectory"]
