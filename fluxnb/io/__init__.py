"""Files: atomic writes, PNG with its recipe, trajectory files, metadata of ComfyUI and A1111."""
