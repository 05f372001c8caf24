"""Selects torch's attention kernel for everything a rank computes, and reports which kernels ran.

By default torch may choose cuDNN's kernel on CUDA, which does not repeat its results from run to run (seen on an H100;
PyTorch issues #178587 and #182551). It is used only if the setting names it.
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
# On CUDA flash accepts no mask, which unequal prompts and captured graphs need, so it has a fallback.
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


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, in_prefill: bool, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention of q [B, H, T, d] to k and v [B, G, W, d]; query head h attends to their head h · G / H.

    In prefill it is causal unless there is a mask; in decode, where T is 1, it is masked if there is a mask.
    `scale` multiplies the products of queries and keys instead of 1 / √d.
    """
    group = q.shape[1] // k.shape[1]
    is_causal = in_prefill and mask is None
    shape = q.shape
    if group > 1 and in_prefill:  # not `enable_gqa`, which not all kernels have
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    elif group > 1:
        q = q.reshape(shape[0], -1, group, shape[3])  # one position: heads of a group are rows of one product
    if _noted is not None:
        kernel = SDPBackend(torch._fused_sdp_choice(q, k, v, mask, 0.0, is_causal, scale=scale)).name
        _noted["prefill" if in_prefill else "decode"].add(kernel.removesuffix("_ATTENTION").lower())
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    return y.reshape(shape) if group > 1 else y


@contextmanager
def noting_kernels() -> Iterator[dict[str, set[str]]]:
    """Record the kernels that torch chooses within the block, for `prefill` and for `decode`."""
    global _noted
    _noted = {"prefill": set(), "decode": set()}
    try:
        yield _noted
    finally:
        _noted = None


def kernels_of(noted: dict[str, set[str]]) -> AttentionKernels:
    """The recorded kernels for a report; several are joined by a plus."""
    return AttentionKernels(**{name: "+".join(sorted(kernels)) or None for name, kernels in noted.items()})


def keep_full_precision() -> None:
    """Compute float32 products in float32 rather than TF32, whatever the defaults of torch and cuBLAS are.

    Reduced-precision reductions keep torch's default: they change rounding, not repeatability.
    """
    torch.set_float32_matmul_precision("highest")
