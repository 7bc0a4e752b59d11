"""Records as pixels: decoded frames, labels, attention overlays, GIF and WebP."""
