"""Proves tokens by transformers, in a process of its own.

Nothing that computes here is the engine's: the forward pass and the filters of sampling are transformers', the noise
is written from its description in docs/design.md. Only the seeded weights come from there, which are given data.
"""
