"""Filling a model part: the right slices, from files of either key style or from a seed."""

import pickle

import pytest
import torch

from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.random_weights import random_tensor
from gpt_parallel.engine.model.weights import load
from gpt_parallel.inputs.checkpoint import inspect_checkpoint, read_architecture
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.layout.part import part_at
from gpt_parallel.layout.stages import stage_layers
from gpt_parallel.schema.families.registry import tensor_shapes
from gpt_parallel.schema.model import ModelSpec


def model_spec(directory):
    architecture = read_architecture(directory)
    stored = inspect_checkpoint(directory, architecture)
    return ModelSpec(
        name="tiny",
        architecture=architecture,
        weights="checkpoint",
        directory=str(directory),
        files=stored.files,
        key_prefix=stored.key_prefix,
    )


def loaded(spec, tp_size=1, index=0, layers=None, has_embedding=True):
    layers = range(spec.architecture.num_layers) if layers is None else layers
    part = part_at(spec.architecture, index, tp_size, layers, has_embedding=has_embedding)
    model = build(spec.architecture, part)
    load(model, spec)
    return {parameter.sources[0].tensor: parameter.target for parameter in model.parameters()}


def stored_tensors(directory):
    from transformers import GPT2LMHeadModel

    return {
        name.removeprefix("transformer."): value
        for name, value in GPT2LMHeadModel.from_pretrained(directory).state_dict().items()
    }


@pytest.mark.parametrize("style", [{}, {"bare": True}, {"max_shard_size": "20KB"}], ids=["prefixed", "bare", "sharded"])
def test_every_key_style_is_read(tiny_checkpoint, style):
    directory = tiny_checkpoint(n_head=3, **style)
    expected = stored_tensors(directory)

    for name, value in loaded(model_spec(directory)).items():
        is_conv = name.startswith("h.") and name.endswith("weight") and ".ln_" not in name
        assert torch.equal(value, expected[name].t() if is_conv else expected[name]), name


@pytest.mark.parametrize("tp_size", [2, 3])
def test_shards_put_together_are_the_whole(tiny_checkpoint, tp_size):
    """Q, K and V apart, because each shard has its own part of all three."""
    spec = model_spec(tiny_checkpoint(n_layer=2, n_head=5, head_size=8))
    whole = loaded(spec)
    parts = [loaded(spec, tp_size, index, has_embedding=False) for index in range(tp_size)]

    for layer in range(2):
        for kind in ("weight", "bias"):
            name = f"h.{layer}.attn.c_attn.{kind}"
            pieces = [part[name].chunk(3) for part in parts]
            assert torch.equal(torch.cat([piece[i] for i in range(3) for piece in pieces]), whole[name])
            name = f"h.{layer}.mlp.c_fc.{kind}"
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
        for name in (f"h.{layer}.attn.c_proj.weight", f"h.{layer}.mlp.c_proj.weight"):
            assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole[name])
        for name in (f"h.{layer}.attn.c_proj.bias", f"h.{layer}.mlp.c_proj.bias", f"h.{layer}.ln_1.weight"):
            assert all(torch.equal(part[name], whole[name]) for part in parts)
    assert torch.equal(torch.cat([part["wte.weight"] for part in parts]), whole["wte.weight"])


def test_stages_hold_their_own_layers(tiny_checkpoint):
    spec = model_spec(tiny_checkpoint(n_layer=4))
    whole = loaded(spec)

    for stage in stage_layers(spec.architecture, 2):
        part = loaded(spec, layers=stage)
        assert {name.split(".")[1] for name in part if name.startswith("h.")} == {str(layer) for layer in stage}
        assert all(torch.equal(value, whole[name]) for name, value in part.items())


def test_random_tensors_depend_on_name_and_seed_alone():
    shape = ARCHITECTURES["gpt2-nano"]
    name = "h.0.mlp.c_fc.weight"

    assert torch.equal(random_tensor(name, shape, 3), random_tensor(name, shape, 3))
    assert not torch.equal(random_tensor(name, shape, 3), random_tensor(name, shape, 4))
    assert not torch.equal(random_tensor(name, shape, 3), random_tensor("h.1.mlp.c_fc.weight", shape, 3))
    state = torch.get_rng_state()
    random_tensor(name, shape, 3)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"


def test_random_tensors_have_the_stored_shapes():
    shape = ARCHITECTURES["gpt2-nano"]
    assert {name: tuple(random_tensor(name, shape, 0).shape) for name in tensor_shapes(shape)} == tensor_shapes(shape)


def test_random_biases_are_not_zero():
    """Else an error with a bias would not show."""
    shape = ARCHITECTURES["gpt2-nano"]
    assert all(random_tensor(name, shape, 0).std() > 0.01 for name in tensor_shapes(shape))


def test_nothing_is_ever_unpickled(tiny_checkpoint, monkeypatch):
    directory = tiny_checkpoint()
    (directory / "pytorch_model.bin").write_bytes(b"not to be opened")

    def refuse(*_, **__):
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)

    assert loaded(model_spec(directory))
