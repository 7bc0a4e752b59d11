"""Hardware, model sizes, offload presets, and the plan that chooses among them."""
