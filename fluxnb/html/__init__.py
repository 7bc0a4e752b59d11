"""Self-contained HTML pages of trajectories and grids."""
