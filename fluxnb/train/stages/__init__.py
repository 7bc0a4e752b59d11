"""The training stages: autoencoder, judge, teacher, pairs, reflow, student and ship, and the parts they share."""
