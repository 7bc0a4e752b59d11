"""The training stages: autoencoder, text, teacher, judge, student and ship, and the parts they share.

The stage `student` samples the teacher's `pairs`, learns their straight lines (`reflow`), and trains with a critic.
"""
