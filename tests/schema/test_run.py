import pytest
from pydantic import ValidationError

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.run import ExecutionSpec, MeshSpec, Request, RunSpec, SamplingSpec, WorkloadSpec
from tests.support.factories import run_spec


def problems(build):
    with pytest.raises(ValidationError) as failure:
        build()
    return SpecError.from_validation(failure.value).problems


def workload(*requests):
    return WorkloadSpec(requests=requests, batch_size=2)


def test_survives_json_unchanged_and_cannot_be_altered():
    spec = run_spec(mesh=MeshSpec(pp=2, tp=2), strategy="full_model_parallel")

    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError):
        spec.strategy = "other"


def test_unknown_fields_are_refused():
    data = run_spec().model_dump() | {"surprise": 1}

    assert "surprise = 1: unknown key" in problems(lambda: RunSpec.model_validate(data))


def test_all_that_does_not_fit_is_named_at_once():
    long = Request(request_id=0, prompt_ids=(1,) * 250, max_new_tokens=7)
    outside = Request(request_id=1, prompt_ids=(1, 4096), max_new_tokens=1)

    found = problems(lambda: run_spec(mesh=MeshSpec(tp=6, pp=5), workload=workload(long, outside)))

    assert found == [
        "tensor_parallel_size 6 is larger than gpt2-nano's 5 attention heads; allowed: 1 to 5",
        "pipeline_parallel_size 5 is larger than gpt2-nano's 4 layers; allowed: 1 to 4",
        "request 0: 250 prompt + 7 new tokens = 257, but gpt2-nano has 256 positions; use shorter prompts or fewer "
        "new tokens",
        "request 1: token id 4096 is outside gpt2-nano's vocabulary; allowed: 0 to 4095",
    ]


def test_the_last_position_may_be_used():
    run_spec(workload=workload(Request(request_id=0, prompt_ids=(1,) * 250, max_new_tokens=6)))


def test_many_bad_requests_are_summed_up():
    bad = [Request(request_id=i, prompt_ids=(9999,), max_new_tokens=1) for i in range(60)]

    assert problems(lambda: run_spec(workload=workload(*bad)))[-1] == "… and 57 more requests"


def test_request_ids_must_differ():
    twice = Request(request_id=3, prompt_ids=(1,), max_new_tokens=1)

    assert problems(lambda: run_spec(workload=workload(twice, twice))) == ["request ids are not unique"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt_ids": (), "max_new_tokens": 0}, ["prompt_ids", "max_new_tokens"]),
        ({"prompt_ids": (-1, 2), "max_new_tokens": "x"}, ["prompt_ids.0", "max_new_tokens"]),
    ],
)
def test_every_wrong_field_is_named(fields, expected):
    found = problems(lambda: Request(request_id=0, **fields))

    assert [problem.split(" ")[0] for problem in found] == expected


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"seed": -1}])
def test_sampling_limits(fields):
    with pytest.raises(ValidationError):
        SamplingSpec(**fields)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value):
    with pytest.raises(ValidationError):
        SamplingSpec(temperature=value)


def test_heads_must_divide_the_width():
    sizes = {"num_layers": 1, "num_heads": 7, "hidden_size": 768, "vocab_size": 9, "max_positions": 9}

    assert problems(lambda: Architecture(**sizes)) == ["hidden_size 768 is not a multiple of num_heads 7"]


PLAIN = {"num_layers": 1, "num_heads": 6, "hidden_size": 768, "vocab_size": 9, "max_positions": 9}
LLAMA = {**PLAIN, "family": "llama", "gated_mlp": True, "rope": {"rotary_size": 128}}


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({**PLAIN, "num_kv_heads": 3}, "a GPT-2 has as many key and value heads as query heads"),
        ({**PLAIN, "head_size": 100}, "a GPT-2 has as many key and value heads as query heads"),
        (
            {**PLAIN, "switches": ["qk_norm"]},
            "switches: 'qk_norm' is none of family 'gpt2'; allowed: scaled_by_layer, ",
        ),
        ({**PLAIN, "gated_mlp": True}, "gated_mlp: family 'gpt2' computes False only"),
        ({**PLAIN, "rope": {"rotary_size": 64}}, "rope: family 'gpt2' has none"),
        ({**PLAIN, "family": "gpt3"}, "family: 'gpt3' is not known; allowed: gpt2, gpt_neox, llama"),
        ({**LLAMA, "rope": None}, "rope: family 'llama' needs one"),
        ({**LLAMA, "rope": {"rotary_size": 64}}, "rope: family 'llama' rotates whole heads"),
        ({**LLAMA, "switches": ["qkv_bias"]}, "switches: family 'llama' has all or none of qkv_bias, output_bias"),
        ({**LLAMA, "sliding_window": 4, "sliding_layers": [0]}, "sliding_window: family 'llama' has none"),
        ({**LLAMA, "family": "qwen3"}, "switches: family 'qwen3' always has qk_norm"),
    ],
    ids=str,
)
def test_an_architecture_must_be_of_its_family(sizes, problem):
    architecture = Architecture(**sizes)

    found = problems(lambda: ModelSpec(name="m", architecture=architecture, weights="random"))

    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope": {"rotary_size": 7}}, "a rotary size of 7 is not even"),
        ({"rope": {"rotary_size": 256}}, "a rotary size of 256 is larger than head_size 128"),
        ({"rope": {"rotary_size": 8, "kind": "yarn", "factor": 2.0}}, "original_max_position_embeddings is missing"),
        ({"rope": {"rotary_size": 8, "factor": 2.0}}, "factor is no parameter of rope_type 'default'"),
        ({"sliding_window": 4}, "sliding_window and sliding_layers"),
        ({"sliding_window": 4, "sliding_layers": [1]}, "sliding_window and sliding_layers, which must be layers of"),
        ({"num_heads": 6, "num_kv_heads": 4}, "num_heads 6 is not a multiple of num_kv_heads 4"),
    ],
    ids=str,
)
def test_an_architecture_that_is_not_possible(changes, problem):
    assert problem in problems(lambda: Architecture(**{**LLAMA, **changes}))[0]


def test_an_architecture_may_be_given_in_the_names_of_its_config():
    theirs = Architecture(
        n_layer=2, n_head=3, n_embd=96, n_inner=100, vocab_size=9, n_positions=8, layer_norm_epsilon=1e-6
    )
    ours = Architecture(
        num_layers=2, num_heads=3, hidden_size=96, mlp_size=100, vocab_size=9, max_positions=8, norm_epsilon=1e-6
    )

    assert theirs == ours
    assert (ours.family, ours.num_kv_heads, ours.head_size, ours.activation) == ("gpt2", 3, 32, "gelu_new")


@pytest.mark.parametrize("name", ["model.bin", "../model.safetensors", "a/b.safetensors", ""])
def test_weights_are_safetensors_of_the_models_directory(name):
    with pytest.raises(ValidationError, match="is not the name of a safetensors file"):
        ModelSpec(name="x", architecture=ARCHITECTURES["gpt2"], weights="checkpoint", directory="/m", files=(name,))


def test_an_architecture_is_counted_before_it_is_believed():
    for name, total in (("gpt2", 124_439_808), ("gpt2-xl", 1_557_611_200)):
        assert Part.whole(ARCHITECTURES[name]).num_weights(ARCHITECTURES[name]) == total, "as published"
    fields = {"num_layers": 12, "num_heads": 12, "hidden_size": 768, "vocab_size": 50257, "max_positions": 1024}
    for sizes in (
        {"num_layers": 10**9},
        {"num_layers": 10_000, "hidden_size": 12 * 2**20, "mlp_size": 2**24},
        {"num_heads": True, "num_kv_heads": 12, "head_size": 64},
    ):
        assert len(problems(lambda sizes=sizes: Architecture(**fields | sizes))) == 1


def test_a_mesh_of_a_billion_ranks_is_refused():
    assert problems(lambda: run_spec(mesh=MeshSpec(dp=10**9))) == [
        "a mesh of 1000000000 ranks is too large; allowed: 1 to 9999"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(10**5000, "a number of 16610 bits", id="huge"),
        pytest.param(-(10**5000), "a number of 16610 bits", id="negative"),
        ("x" * 10**6, "'xxx"),
        ([["y" * 10**6] * 10**4] * 100, "[['yyy"),
        ({"a": {"b": {"c": {"d": "e" * 10**6}}}}, "{'a': {'b': {'c': {...}}}}"),
    ],
)
def test_messages_stay_short_whatever_the_value(value, message):
    assert message in quoted(value)
    assert len(quoted(value)) < 3500


def test_of_many_wrong_fields_the_first_are_named():
    found = problems(lambda: Request(request_id=0, prompt_ids=(1,) + (-1,) * 10_000, max_new_tokens=1))

    assert (len(found), found[-1]) == (21, "… and 9980 more")
    assert all(len(problem) < 200 for problem in problems(lambda: Request(**{"z" * 10**6: 1})))


def test_mesh_is_written_by_its_axes():
    assert str(MeshSpec()) == "1"
    assert str(MeshSpec(pp=2, dp=3, tp=4)) == "pp2·dp3·tp4"
    assert MeshSpec(pp=2, dp=3, tp=4).size == 24


def test_captions_say_which_weights_and_how_much_work():
    assert run_spec().model.weights_origin == "random (seed 0)"
    stored = ModelSpec(name="x", architecture=ARCHITECTURES["gpt2"], weights="checkpoint", directory="/models/x")
    assert stored.weights_origin == "checkpoint /models/x"
    mixed = workload(
        Request(request_id=0, prompt_ids=(1, 2, 3), max_new_tokens=4),
        Request(request_id=1, prompt_ids=(1,), max_new_tokens=4),
    )
    assert mixed.shape == "2 requests × (1–3 + 4 tokens), batch 2"
    assert mixed.num_output_tokens == 8


def test_the_reference_is_the_same_work_on_one_device():
    spec = run_spec(mesh=MeshSpec(dp=4))
    single = spec.single_device()

    assert single.mesh.size == 1
    assert single.workload == spec.workload
    assert single.execution.rounds == 0


def test_cores_are_dealt_in_slices_and_shared_when_they_run_out():
    two, eight = (ExecutionSpec(device="cpu", dtype="float32", backend="gloo", cores_per_rank=n) for n in (2, 8))

    assert [two.cores_of(rank, (4, 5, 6, 7)) for rank in range(3)] == [(4, 5), (6, 7), (4, 5)]
    assert eight.cores_of(1, (0, 3)) == (0, 3)
