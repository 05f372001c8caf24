"""On a GPU: every case is verified, with every attention kernel and both ways of decoding; what varies is told."""

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch.devices import cuda_devices
from gpt_parallel.layout.strategies import cases

pytestmark = [pytest.mark.cuda(n=1), pytest.mark.timeout(900)]

SAMPLINGS = {
    "greedy": {},
    "temperature": {"temperature": 0.8, "seed": 1},
    "top_k": {"temperature": 0.8, "top_k": 40, "seed": 2},
    "top_p": {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    "penalty": {"repetition_penalty": 1.2},
    "all": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 4},
}
KERNELS = ["auto", "flash", "efficient", "math", "cudnn"]
REPEATABLE = {"flash", "efficient", "math"}
UNEQUAL = '{"prompt_ids": [1, 2, 3], "max_length": 9}\n{"prompt_ids": [5, 6, 7, 8, 9, 10, 11], "max_length": 5}\n' * 3


def run(preset="smoke", strategy="pure_data_parallel", num_gpus=1, **given):
    suite = Suite(make_settings(preset, {"device": "cuda", "num_iterations": 2, **given}))
    return suite.run(suite.spec(strategy, num_gpus))


def tokens(result):
    return {output.request_id: output.tokens for output in result.outputs}


@pytest.mark.parametrize(("strategy", "num_gpus"), cases((1, 2, 4)))
def test_all_nine_cases_share_what_gpus_there_are(strategy, num_gpus):
    result = run(strategy=strategy, num_gpus=num_gpus, oversubscribe=True)

    assert result.verification.passed
    assert result.verification.judge.startswith("transformers ")
    assert result.spec.execution.oversubscribed == (num_gpus > len(cuda_devices()))
    assert result.environment.device_names[0] == cuda_devices()[0].name


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("prompts", ["equal", "unequal"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_generate_what_eager_steps_generate(tmp_path, sampling, prompts, dtype):
    """In bfloat16 a graph's masked step may round otherwise, so there both need only be right."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(UNEQUAL)
    given = {**sampling, "dtype": dtype, **({"prompts": str(file)} if prompts == "unequal" else {})}

    graph, eager = (run(decode=decode, **given) for decode in ("graph", "eager"))

    assert graph.verification.passed
    assert eager.verification.passed
    assert graph.verification.repeatable
    assert eager.verification.repeatable
    if dtype == "float32":
        assert tokens(graph) == tokens(eager)


@pytest.mark.parametrize("decode", ["graph", "eager"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_smoke_preset_is_verified_with_every_attention_kernel(kernel, decode):
    check_kernel(run(attention=kernel, decode=decode, dtype="bfloat16", num_iterations=5), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_xl_preset_is_verified_with_every_attention_kernel(kernel):
    """The default job of a GPU, which failed on the first one that it met."""
    check_kernel(run("xl", attention=kernel, num_samples=8, num_iterations=3), kernel)


@pytest.mark.slow
def test_the_xl_preset_is_verified_five_times_in_a_row():
    for _ in range(5):
        assert run("xl", num_iterations=3).verification.passed


def check_kernel(result, kernel):
    ran = {name for rank in result.ranks for phase in ("prefill", "decode") for name in _names(rank, phase)}
    assert result.verification.passed
    assert ran <= REPEATABLE | {"cudnn"}
    if kernel == "cudnn":
        assert "cudnn" in ran
    else:
        assert "cudnn" not in ran
        assert result.verification.repeatable is True
    if kernel in ("efficient", "math"):
        assert ran == {kernel}


def _names(rank, phase):
    return getattr(rank.generated.attention, phase).split("+")
