"""Packed products are the plain ones, and are taken where they pay."""

import pytest
import torch

from gpt_parallel.engine.model.activations import ACTIVATIONS
from gpt_parallel.engine.model.linear import Linear, PackedLinear, can_pack, choose_kernel

CPU = torch.device("cpu")
LARGE, SMALL = 1 << 30, 1 << 20
needs_packing = pytest.mark.skipif(
    not can_pack(torch.float32, CPU), reason="this build of torch has no packed products"
)


@needs_packing
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_packed_products_are_the_plain_ones(rows, activation):
    generator = torch.Generator().manual_seed(rows)
    plain = Linear(33, 47, torch.float32, CPU)
    for tensor in (plain.weight, plain.bias):
        tensor.normal_(generator=generator)
    x, residual = (torch.randn(rows, width, generator=generator) for width in (33, 47))
    packed = PackedLinear(plain.weight, plain.bias)

    for own, expected in (
        (packed(x), plain(x)),
        (packed.without_bias(x), plain.without_bias(x)),
        (packed.added_to(residual, x), plain.added_to(residual, x)),
        (packed.activated(x, ACTIVATIONS[activation]), plain.activated(x, ACTIVATIONS[activation])),
    ):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(plain.added_to(residual, x), residual + x @ plain.weight.t() + plain.bias)


@needs_packing
def test_large_models_are_packed_and_tiny_ones_are_not():
    assert choose_kernel("auto", LARGE, torch.float32, CPU) == "packed"
    assert choose_kernel("auto", SMALL, torch.float32, CPU) == "plain"
    assert choose_kernel("packed", SMALL, torch.float32, CPU) == "packed"
    assert choose_kernel("plain", LARGE, torch.float32, CPU) == "plain"


def test_what_cannot_be_packed_runs_plain_or_is_refused():
    cuda = torch.device("cuda")

    assert choose_kernel("auto", LARGE, torch.float16, CPU) == "plain"
    assert choose_kernel("auto", LARGE, torch.float32, cuda) == "plain"
    with pytest.raises(ValueError, match="packed linear layers are not available for float16 on this cpu"):
        choose_kernel("packed", LARGE, torch.float16, CPU)
