"""Linear layers with constant weights: plain, or packed once into oneDNN's fastest layout.

With few rows a product is bound by reading its weight, and one core reads a packed weight up to twice as fast as a
plain one. In float32 a packed call costs about 15 µs more, so tiny models run plain.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_parallel.engine.model.activations import Activation

Kernel = Literal["plain", "packed"]

_PACKING_PAYS_BYTES = 16 << 20  # in float32; in bfloat16 it always does


class Linear:
    """y = x Wᵀ + b for x [N, inputs]. The bias is separate because a row-parallel layer adds it after the reduction."""

    def __init__(
        self, num_inputs: int, num_outputs: int, dtype: torch.dtype, device: torch.device, *, has_bias: bool = True
    ) -> None:
        self.weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=device)
        self.bias = torch.empty(num_outputs, dtype=dtype, device=device) if has_bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        return activation.function(F.linear(x, self.weight, self.bias))

    def without_bias(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias).add_(residual)


class PackedLinear:
    """A linear layer with a packed weight, with the following operation fused into the product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return _pointwise(x, self._weight, self.bias, "none", [], "")

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        if activation.fused is None:
            return activation.function(self(x))
        operation, algorithm = activation.fused
        return _pointwise(x, self._weight, self.bias, operation, [], algorithm)

    def without_bias(self, x: Tensor) -> Tensor:
        return _pointwise(x, self._weight, None, "none", [], "")

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self.bias, "add")
        return added


def _pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, operation: str, scalars: list[float], algorithm: str
) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, operation, scalars, algorithm)
    return product


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch build and processor support packed linear layers of the number type."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def choose_kernel(wanted: str, num_bytes: int, dtype: torch.dtype, device: torch.device) -> Kernel:
    """The kernel for a model of `num_bytes`. Raises ValueError if "packed" is chosen but not available."""
    possible = can_pack(dtype, device)
    if wanted == "packed" and not possible:
        raise ValueError(
            f"packed linear layers are not available for {str(dtype).removeprefix('torch.')} on this {device.type} "
            "with this torch build; use linear 'auto' or 'plain'"
        )
    if wanted == "auto":
        pays = dtype == torch.bfloat16 or num_bytes >= _PACKING_PAYS_BYTES
        return "packed" if possible and pays else "plain"
    return "packed" if wanted == "packed" else "plain"
