"""The synthetic training data: scenes and captions, rendering, tokenizers and datasets.

The first dataset is in `world`, `sprites`, `render`, `tokens` and `dataset`. The second, whose pictures depend more on
the seed, is in `nouns`, `emoji`, `chances` and `scenes` (contents and their frequencies), `captions`, `layouts`,
`places` and `drawing` (rendering), `vocabulary` (tokenizers) and `stream` (batches).
"""
