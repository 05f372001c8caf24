"""The activations without parameters that transformers knows, by its names."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_parallel.schema.architecture import ActivationName


class Activation(NamedTuple):
    """An activation function and its name in oneDNN, (operation, algorithm), if a packed product can include it."""

    function: Callable[[Tensor], Tensor]
    fused: tuple[str, str] | None = None


_GELU = Activation(F.gelu, ("gelu", "none"))
_TANH_GELU = Activation(lambda x: F.gelu(x, approximate="tanh"), ("gelu", "tanh"))
_SILU = Activation(F.silu, ("swish", ""))
_LAPLACE_MEAN, _LAPLACE_DEVIATION = 0.707107, 0.282095

ACTIVATIONS: dict[ActivationName, Activation] = {
    "gelu": _GELU,
    "gelu_python": _GELU,
    "gelu_accurate": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_new": _TANH_GELU,
    "gelu_python_tanh": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "gelu_10": Activation(lambda x: F.gelu(x).clamp(-10, 10)),
    "hardswish": Activation(F.hardswish, ("hardswish", "")),
    "laplace": Activation(
        lambda x: torch.erf((x - _LAPLACE_MEAN) / (_LAPLACE_DEVIATION * math.sqrt(2))).add_(1).mul_(0.5)
    ),
    "leaky_relu": Activation(F.leaky_relu),
    "linear": Activation(lambda x: x),
    "mish": Activation(F.mish),
    "quick_gelu": Activation(lambda x: x * torch.sigmoid(1.702 * x)),
    "relu": Activation(F.relu, ("relu", "")),
    "relu2": Activation(lambda x: F.relu(x).square()),
    "relu6": Activation(F.relu6),
    "sigmoid": Activation(torch.sigmoid, ("sigmoid", "")),
    "silu": _SILU,
    "swish": _SILU,
    "tanh": Activation(torch.tanh, ("tanh", "")),
}
