"""Matplotlib figures of trajectories and sweeps.

filmstrip        every step of one trajectory, one column a step
compare          several trajectories, aligned by noise level
contact_sheet    the pictures of a sweep as a labeled grid
attention        where each word of the prompt was attended to, laid over the picture
latent_channels  the sixteen latent channels of one step
sigma_curve      the noise level at each step
velocity         the length of the velocity at each noise level
lock_in          the distance of the clean estimate from the final latents
path             trajectories in their two principal directions
memory           device memory over time, one line a preset
pictures         pictures of any kind in rows and columns
chart            empty axes in the style of these figures
describe         sets the alternative text of a figure

The functions for records return a `matplotlib.figure.Figure` titled with model, seed and steps. `ax=` draws into axes
of your own. The functions take records and never load a model.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
