"""Evaluation of pocket models: measurements, targets, intervals and figures; readings of pictures by the judge."""
