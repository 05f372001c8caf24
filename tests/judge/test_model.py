"""The judge has the run's weights, and computes what the engine computes."""

import json

import pytest
import torch

from gpt_parallel.bench.suite import Suite
from gpt_parallel.engine.model.random_weights import random_tensor
from gpt_parallel.inputs.models import resolve_model
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.judge.model import load_model
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.model import ModelSpec

CPU = torch.device("cpu")
SHAPE = Architecture(n_layer=2, n_head=3, n_embd=24, n_inner=40, vocab_size=97, n_positions=64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_rounded_once_and_computed_with_in_float32(dtype):
    model = load_model(ModelSpec(name="tiny", architecture=SHAPE, weights="random", seed=5), dtype, CPU)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, parameter in model.transformer.named_parameters():
        expected = random_tensor(name, SHAPE, 5).to(getattr(torch, dtype)).float()
        assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("sizes", [{"bare": True}, {"max_shard_size": "20KB"}, {}], ids=["bare", "sharded", "plain"])
def test_checkpoints_are_read_however_they_were_saved(tiny_checkpoint, sizes):
    directory = tiny_checkpoint(**sizes)
    model = load_model(resolve_model(str(directory), "checkpoint"), "float32", CPU)

    again = load_model(resolve_model(str(tiny_checkpoint()), "checkpoint"), "float32", CPU)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_only_the_files_and_sizes_of_the_run_count(tiny_checkpoint):
    """Not another file beside them, and no field of config.json that says nothing of the architecture."""
    directory = tiny_checkpoint(max_shard_size="20KB")
    spec = resolve_model(str(directory), "checkpoint")
    config = json.loads((directory / "config.json").read_text())
    config |= {"layer_norm_epsilon": None, "activation_function": None, "id2label": 3}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes((tiny_checkpoint(seed=9) / "model.safetensors").read_bytes())
    assert resolve_model(str(directory), "checkpoint") == spec

    model = load_model(spec, "float32", CPU)

    expected = load_model(resolve_model(str(tiny_checkpoint()), "checkpoint"), "float32", CPU)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"])
def test_every_activation_is_proved(tiny_checkpoint, activation):
    directory = tiny_checkpoint(n_positions=64)
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"gelu_new"', f'"{activation}"'))
    given = {"model": str(directory), "device": "cpu", "num_samples": 3, "prompt_tokens": 9, "max_length": 5}
    suite = Suite(make_settings("smoke", {**given, "prompts": "random"}))

    verification = suite.run(suite.spec("pure_data_parallel", 1), timed=False).verification

    assert suite.model.architecture.activation == activation
    assert verification.status == "exact"
    assert verification.judge.startswith("transformers 5.")
