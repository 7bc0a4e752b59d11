"""The training of pocket: synthetic data, networks, training stages and evaluation.

Four packages, in the order of their dependencies:

- `data`: scenes and captions (`world`), rendering (`render`), tokenizers (`tokens`) and datasets (`dataset`).
- `networks`: pipeline components (`build`), `denoiser`, `judge` and `critic`.
- `stages`: one module per training stage, and the parts they share (`loop`, `optimizers`, `losses`).
- `evaluation`: sampling, measurements, confidence intervals and acceptance targets.

`config` holds sizes and schedules, `metrics` quality measures, and `toy` a two-dimensional flow for the notebooks.
`python -m fluxnb.train --help` lists the commands. No other package imports this one.
"""
