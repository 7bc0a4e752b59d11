"""What leaves the notebook: pictures that carry their recipe, and pages and films made by the modules beside."""
