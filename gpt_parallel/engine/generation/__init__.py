"""The generation loop, sampling, CUDA graphs, and the records of a pass."""
