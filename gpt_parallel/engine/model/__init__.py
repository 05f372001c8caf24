"""Models as single-device code: layers, attention, cache, weights."""
