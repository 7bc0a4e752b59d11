"""The second generation of pocket: the networks that learn the second world, and their trainings.

`python -m fluxnb.train.second --help` lists the stages.
"""
