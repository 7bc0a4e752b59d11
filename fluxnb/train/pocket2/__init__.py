"""Training of the second pocket, which does not ship yet: networks, autoencoder and teacher for the second dataset.

`python -m fluxnb.train.pocket2 --help` lists the stages.
"""
