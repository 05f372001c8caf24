"""The judge: verifies tokens with transformers, in a process of its own.

It shares no computation with the engine: the forward pass and the sampling filters are transformers', the noise is
implemented from its description in docs/design.md. Only the seeded weights come from the engine, as input data.
"""
