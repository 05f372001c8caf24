"""Which of torch's attention kernels a run uses: held around all that a rank computes, and told afterwards.

Left alone, torch may take cuDNN's kernel on CUDA, which does not repeat its results from run to run (seen on an H100;
PyTorch issues #178587 and #182551). It is used where it is asked for and nowhere else.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt_parallel.schema.result import AttentionKernels
from gpt_parallel.schema.run import ExecutionSpec

_REPEATABLE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Not every kernel takes every call: on CUDA flash takes no mask, which unequal prompts and captured graphs need.
_KERNELS = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
}

_noted: dict[str, set[str]] | None = None


def attention_kernel(execution: ExecutionSpec) -> AbstractContextManager[None]:
    """Restrict torch to the chosen kernel; with "auto" torch decides for each call, on CUDA among those that repeat."""
    if execution.attention == "auto":
        return sdpa_kernel(_REPEATABLE) if execution.device == "cuda" else nullcontext()
    return sdpa_kernel(_KERNELS[execution.attention])


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Attention of q [B, H, T, d] to k and v [B, H, W, d], which prefill's causal and decode's plain calls share."""
    if _noted is not None:
        kernel = SDPBackend(torch._fused_sdp_choice(q, k, v, mask, 0.0, is_causal)).name
        _noted["prefill" if is_causal else "decode"].add(kernel.removesuffix("_ATTENTION").lower())
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


@contextmanager
def noting_kernels() -> Iterator[dict[str, set[str]]]:
    """The kernels that torch takes meanwhile, for `prefill` and for `decode`."""
    global _noted
    _noted = {"prefill": set(), "decode": set()}
    try:
        yield _noted
    finally:
        _noted = None


def kernels_of(noted: dict[str, set[str]]) -> AttentionKernels:
    """As a report has them: several are joined by a plus."""
    return AttentionKernels(**{name: "+".join(sorted(kernels)) or None for name, kernels in noted.items()})


def keep_full_precision() -> None:
    """Products of float32 are not to be made of TF32, whatever torch's default and NVIDIA's library are.

    The reductions of half-precision products stay as torch has them: they change how results are rounded, and not
    whether they repeat.
    """
    torch.set_float32_matmul_precision("highest")
