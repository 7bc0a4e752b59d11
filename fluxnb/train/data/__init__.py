"""The scenes that pocket is trained on: descriptions, sprites, rendering, tokenizers, batches.

The first world is `world`, `sprites`, `render`, `tokens` and `batches`. The second, in which a seed matters, is
`nouns`, `emoji`, `chances` and `scenes` (what there is and how often), `captions` (how it is said), `layouts`, `places`
and `drawing` (what it looks like), `vocabulary` and `stream` (how it reaches the networks).
"""
