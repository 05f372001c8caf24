"""Model families: what each one's configurations and stored tensors look like, without torch."""
