"""Model families: their configurations and stored tensors, without torch."""
