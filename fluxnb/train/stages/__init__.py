"""The training stages: autoencoder, teacher, pairs, reflow, student, and the loop that they share."""
