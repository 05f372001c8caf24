"""GPT-2 as single-device code: products, attention, cache, weights."""
