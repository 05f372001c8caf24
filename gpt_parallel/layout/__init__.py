"""The layout of a run: the parts that ranks hold, the batches they generate, and the costs. Without torch."""
