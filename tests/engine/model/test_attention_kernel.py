"""The chosen attention kernel is the one that runs, and computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from gpt_parallel.engine import job as job_module
from gpt_parallel.engine.model.attention_kernel import attend, attention_kernel, kernels_of, noting_kernels
from gpt_parallel.schema.result import AttentionKernels
from gpt_parallel.schema.run import ExecutionSpec, Job
from tests.support.factories import run_spec


def execution(attention, device="cpu"):
    return ExecutionSpec(device=device, dtype="float32", backend="gloo", attention=attention)


def enabled():
    return {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
    }


@pytest.mark.parametrize(
    ("choice", "kernels"),
    [
        ("flash", {SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION}),
        ("efficient", {SDPBackend.EFFICIENT_ATTENTION}),
        ("math", {SDPBackend.MATH}),
        ("cudnn", {SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION}),
    ],
)
def test_only_the_chosen_kernels_are_allowed_meanwhile(choice, kernels):
    before = enabled()

    with attention_kernel(execution(choice)):
        inside = {kernel for kernel, is_on in enabled().items() if is_on}

    assert inside == kernels
    assert enabled() == before


def test_auto_leaves_the_choice_to_torch_on_a_cpu():
    before = enabled()

    with attention_kernel(execution("auto")):
        assert enabled() == before


def test_auto_never_lets_torch_take_cudnn_on_cuda():
    """Its results do not repeat. Only the switches are looked at, which a machine without a GPU has too."""
    assert enabled()[SDPBackend.CUDNN_ATTENTION], "torch may take it unless it is told not to"

    with attention_kernel(execution("auto", device="cuda")):
        assert enabled() == {kernel: kernel != SDPBackend.CUDNN_ATTENTION for kernel in enabled()}


def test_the_kernels_that_ran_are_told():
    q, k, v = (torch.randn(3, 2, 9, 8) for _ in range(3))
    with attention_kernel(execution("math")), noting_kernels() as noted:
        attend(q, k, v, in_prefill=True)
    assert kernels_of(noted) == AttentionKernels(prefill="math", decode=None)

    with noting_kernels() as noted:
        attend(q, k, v, in_prefill=True)
        attend(q[:, :, :1], k, v, in_prefill=False)
        with attention_kernel(execution("math")):
            attend(q[:, :, :1], k, v, in_prefill=False)
    assert kernels_of(noted) == AttentionKernels(prefill="flash", decode="flash+math")


@pytest.mark.parametrize("masked", [False, True])
def test_kernels_of_a_cpu_agree(masked):
    q, k, v = (torch.randn(3, 2, length, 8) for length in (1, 9, 9))
    mask = torch.rand(3, 1, 1, 9) > 0.4 if masked else None
    mask = mask if mask is None else mask.index_fill(-1, torch.tensor([0]), True)
    results = []
    for choice in ("auto", "flash", "math"):
        with attention_kernel(execution(choice)):
            results.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


@pytest.mark.parametrize("kind", ["generate", "score"])
def test_all_that_a_rank_does_is_under_the_choice(monkeypatch, kind):
    seen = []

    class Fake:
        def __init__(self, *_):
            seen.append(enabled())

        def generate(self, *_):
            seen.append(enabled())

        score = generate

    monkeypatch.setattr(job_module, "Rank", Fake)
    job = Job(kind=kind, spec=run_spec(execution=execution("math")))

    job_module.run_job(job, 0, 0, "", None)

    assert seen == [{**dict.fromkeys(enabled(), False), SDPBackend.MATH: True}] * 2
