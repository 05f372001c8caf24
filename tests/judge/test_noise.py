"""The judge's noise is what docs/design.md describes, and the engine's, though neither has it from the other."""

from math import log

import pytest
import torch

from gpt_parallel.engine.generation.sampling import Sampler, gumbel_noise
from gpt_parallel.judge.noise import gumbel
from gpt_parallel.schema.run import Request, SamplingSpec
from tests.engine.generation.test_sampling import SHAPE, VOCABULARY, Alone

CPU = torch.device("cpu")
WORD = 2**32


def h(x):
    x %= WORD
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ (x >> 16)


def described(seed, request_id, position, token):
    """docs/design.md, "Noise", in Python's integers."""
    a = h(h(request_id + h(seed)) + h(position))
    b = h(a ^ 0x5BD1E995)
    u = ((h(h(token * 0x9E3779B1 + a) ^ b) >> 9) + 0.5) / 2**23
    return -log(-log(u))


@pytest.mark.parametrize(("seed", "request_id"), [(0, 0), (7, 3), (2**32 + 5, 2**31), (2**40, 10**6)])
def test_it_is_as_described(seed, request_id):
    noise = gumbel(seed, request_id, (0, 5, 1023), 50257, CPU)

    assert noise.shape == (3, 50257)
    for row, position in enumerate((0, 5, 1023)):
        for token in (0, 1, 4095, 50256):
            assert noise[row, token].item() == pytest.approx(described(seed, request_id, position, token), abs=1e-12)


@pytest.mark.parametrize("seed", [0, 11, 2**33 + 1])
def test_it_is_the_engine_s(seed):
    """Up to the rounding of float32, in which the engine has it."""
    requests = tuple(Request(request_id=i, prompt_ids=(1,) * (i + 1), max_new_tokens=4) for i in (0, 2, 9))
    sampling = SamplingSpec(temperature=1.0, seed=seed)
    state = Sampler(sampling, SHAPE, range(VOCABULARY), Alone(), 1, CPU).start(requests)

    for step in (0, 3):
        theirs = gumbel_noise(state.keys, state.lengths + step, torch.arange(VOCABULARY))
        for row, request in enumerate(requests):
            position = len(request.prompt_ids) + step
            ours = gumbel(seed, request.request_id, (position,), VOCABULARY, CPU)[0]
            torch.testing.assert_close(theirs[row].double(), ours, atol=3e-6, rtol=0)
