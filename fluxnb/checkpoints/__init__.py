"""Where weights are: names, folders, the hub, checksums."""
