"""Figures of walks and grids: plain functions that return a matplotlib Figure and never see the model.

`sigma_curve`, `velocity`, `lock_in` and `path` have axes (`curves`); `filmstrip`, `compare`, `contact_sheet` and
`latent_channels` are made of pictures (`strips`), `attention` of pictures under light (`spotlights`). All take `ax=`,
to be drawn into a figure of your own.
Every figure says which model, seed and steps it shows.
"""

from fluxnb.plots.attention import attention
from fluxnb.plots.curves import lock_in, path, sigma_curve, velocity
from fluxnb.plots.memory import memory
from fluxnb.plots.strips import compare, contact_sheet, filmstrip, latent_channels

__all__ = [
    "attention",
    "compare",
    "contact_sheet",
    "filmstrip",
    "latent_channels",
    "lock_in",
    "memory",
    "path",
    "sigma_curve",
    "velocity",
]
