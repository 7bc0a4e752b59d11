"""The Flux handle: load, encode, denoise, decode, previews."""
