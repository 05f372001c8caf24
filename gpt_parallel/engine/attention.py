"""Which of torch's attention kernels a run uses: the user's choice, held around all that a rank computes."""

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt_parallel.spec import ExecutionSpec

# On CUDA the flash kernel takes no mask, which steps of unequal prompts and captured graphs need; those use efficient.
_KERNELS = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}


def attention_kernel(execution: ExecutionSpec) -> AbstractContextManager[None]:
    """Restrict torch to the chosen kernel; with "auto" torch decides for each call."""
    if execution.attention == "auto":
        return nullcontext()
    return sdpa_kernel(_KERNELS[execution.attention])
