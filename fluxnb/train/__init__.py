"""How pocket was made: the world it draws, its networks, their training and its judge.

Read in this order: `world` (what a scene is and how it is said), `render` (what it looks like),
`tokens` and `build` (the parts of the pipeline), `objective` and `loop` (how a network learns),
`autoencoder`, `judge` and `teacher` (the three trainings), `evaluate` (the figures), `ship` (the folder).
Nothing outside this package imports it; `python -m fluxnb.train --help` lists the commands.
"""
