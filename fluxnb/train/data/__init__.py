"""The synthetic training data.

Contents of scenes and their frequencies are in `nouns`, `emoji`, `chances` and `scenes`, their captions in `captions`,
their rendering in `layouts`, `places` and `drawing`, the tokenizers in `vocabulary`, and batches in `stream`.
"""
