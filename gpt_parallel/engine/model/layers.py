"""The layers that model families share besides products and attention, and the shards of products."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from gpt_parallel.engine.model.interface import Parameter, Reduce, Source
from gpt_parallel.engine.model.linear import Linear, PackedLinear

Product = Linear | PackedLinear


class Table:
    """A row per token or position."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(num_rows, width, dtype=dtype, device=device)


class Norm(Protocol):
    def __call__(self, x: Tensor) -> Tensor: ...

    def parameters(self, name: str) -> Iterator[Parameter]: ...


class LayerNorm:
    def __init__(self, width: int, epsilon: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(width, dtype=dtype, device=device)
        self.bias = torch.empty(width, dtype=dtype, device=device)
        self._shape, self._epsilon = (width,), epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self._shape, self.weight, self.bias, self._epsilon)

    def parameters(self, name: str) -> Iterator[Parameter]:
        yield Parameter(self.weight, (Source(f"{name}.weight"),))
        yield Parameter(self.bias, (Source(f"{name}.bias"),))


class RmsNorm:
    def __init__(self, width: int, epsilon: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(width, dtype=dtype, device=device)
        self._shape, self._epsilon = (width,), epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return torch.rms_norm(x, self._shape, self.weight, self._epsilon)

    def parameters(self, name: str) -> Iterator[Parameter]:
        yield Parameter(self.weight, (Source(f"{name}.weight"),))


class Block(Protocol):
    """One decoder layer. How it is called is between it and its family's `blocks`."""

    def parameters(self, name: str) -> Iterator[Parameter]: ...

    def linears(self) -> Iterator[tuple[object, str]]:
        """The owner and attribute of each product that can be packed."""


def linears_of(*owners: object) -> Iterator[tuple[object, str]]:
    for owner in owners:
        for name, value in vars(owner).items():
            if isinstance(value, Linear):
                yield owner, name


def column_parallel(linear: Product, sources: tuple[tuple[str, tuple[range, ...]], ...]) -> Iterator[Parameter]:
    """The parameters of a column-parallel product, stored as [outputs, inputs]: a shard has ranges of its outputs.

    `sources`: stored layers, whose outputs are one after another, and the ranges of each.
    """
    assert isinstance(linear, Linear)
    yield Parameter(linear.weight, tuple(Source(f"{name}.weight", 0, ranges) for name, ranges in sources))
    if linear.bias is not None:
        yield Parameter(linear.bias, tuple(Source(f"{name}.bias", 0, ranges) for name, ranges in sources))


def row_parallel(linear: Product, name: str, columns: range) -> Iterator[Parameter]:
    """The parameters of a row-parallel product: a shard has these inputs; its whole bias is added after the sum."""
    assert isinstance(linear, Linear)
    yield Parameter(linear.weight, (Source(f"{name}.weight", -1, (columns,)),))
    if linear.bias is not None:
        yield Parameter(linear.bias, (Source(f"{name}.bias"),))


def finish(residual: Tensor, x: Tensor, projection: Product, reduce: Reduce | None) -> Tensor:
    """residual + x Wᵀ + b, where x and W may be one shard's part."""
    if reduce is None:
        return projection.added_to(residual, x)
    total = reduce(projection.without_bias(x))
    return total.add_(residual) if projection.bias is None else total.add_(projection.bias).add_(residual)
