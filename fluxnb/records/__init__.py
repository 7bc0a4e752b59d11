"""Frozen values without a model: Recipe, Keep, Step, Trajectory, Film, Cell and Sweep.

Their tensors are detached copies on the CPU. They can be pickled, deep-copied and opened without a GPU. The elements of
a tensor are not protected; do not write into them.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
