"""The scenes that pocket is trained on: descriptions, sprites, rendering, tokenizers, batches."""
