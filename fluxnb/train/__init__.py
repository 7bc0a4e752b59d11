"""The training of pocket: synthetic data, networks, training stages and evaluation.

Four packages, in the order of their dependencies:

- `data`: scenes, captions, layouts and their rendering, tokenizers, and batches of all of these.
- `networks`: the parts of a pipeline (`build`), `denoiser`, `judge`, `critic`, and their files (`weights`).
- `stages`: one module per training stage, and the parts they share (`loop`, `optimizers`, `losses`, `pairs`).
- `evaluation`: measurements (`evaluator`), targets (`report`) and their intervals (`statistics`), figures, sheets of
  samples, and the readings of pictures (`reading`).

`config` holds sizes and schedules, `metrics` quality measures, and `toy` a two-dimensional flow for the notebooks.
`python -m fluxnb.train --help` lists the stages. No other package imports this one.
"""
