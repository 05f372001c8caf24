"""The generation loop, sampling, CUDA graphs, and what is recorded of a pass."""
