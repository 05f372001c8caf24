"""Models as people have them: wrappers' names, and directories that are something else."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.models import resolve_model
from gpt_parallel.inputs.settings import make_settings


def rename(directory, change):
    path = directory / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def refusal(name):
    with pytest.raises(SpecError) as refused:
        resolve_model(str(name), "checkpoint", offline=True)
    return str(refused.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "base_model.model."])
@pytest.mark.parametrize("has_usual", [True, False])
def test_a_wrappers_prefix_is_stripped_and_named(tiny_checkpoint, prefix, has_usual):
    directory = tiny_checkpoint()
    rename(directory, lambda name: prefix + (name if has_usual else name.removeprefix("transformer.")))

    spec = resolve_model(str(directory), "checkpoint")

    assert spec.key_prefix == prefix + "transformer." * has_usual
    assert spec.weights_origin.endswith(f"(names after {spec.key_prefix!r})")


def test_weights_with_a_wrappers_prefix_run_and_are_proved(tiny_checkpoint):
    directory = tiny_checkpoint(n_positions=64)
    rename(directory, lambda name: f"module.{name}")
    given = {"model": str(directory), "device": "cpu", "num_samples": 2, "prompt_tokens": 5, "max_length": 4}
    suite = Suite(make_settings("smoke", {**given, "prompts": "random", "weights": "checkpoint"}))

    assert suite.run(suite.spec("tensor_data_hybrid", 2), timed=False).verification.passed


KINDS = {
    "adapter": (
        {"adapter_config.json": '{"base_model_name_or_path": "gpt2"}'},
        "an adapter (LoRA or the like) of 'gpt2'",
    ),
    "broken adapter": ({"adapter_config.json": "{"}, "an adapter (LoRA or the like), not a whole model; merge it"),
    "gguf": ({"model-q4.gguf": "GGUF"}, "model-q4.gguf is a GGUF file of llama.cpp; give the Hugging Face directory"),
    "onnx": ({"model.onnx": ""}, "model.onnx is an ONNX export"),
    "fsdp": ({".metadata": "", "__0_0.distcp": ""}, "a sharded training checkpoint of FSDP; combine it"),
    "deepspeed": (
        {"zero_to_fp32.py": "", "latest": "global_step3"},
        "of DeepSpeed; combine it (python zero_to_fp32.py",
    ),
    "training": ({"optimizer.pt": "", "trainer_state.json": "{}"}, "a training checkpoint (optimizer and scheduler"),
    "runs": ({"checkpoint-500/x": "", "checkpoint-1000/x": ""}, "a training run's output with 2 checkpoints; give one"),
    "tokenizer": (
        {"tokenizer.json": "{}", "vocab.json": "{}"},
        "a tokenizer alone; give the directory that has config",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_is_something_else_is_named_with_its_remedy(kind, tmp_path):
    files, sentence = KINDS[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)

    message = refusal(tmp_path)

    assert message.startswith(f"{tmp_path}: this is ")
    assert sentence in message
    assert "\n" not in message


def test_training_states_beside_a_configuration_are_named(tmp_path, tiny_checkpoint):
    (tmp_path / "config.json").write_text((tiny_checkpoint() / "config.json").read_text())
    (tmp_path / "optimizer.pt").touch()

    assert "no model.safetensors or model.safetensors.index.json; this is a training checkpoint" in refusal(tmp_path)


def test_an_empty_directory_has_no_configuration(tmp_path):
    assert "config.json: cannot be read (No such file or directory)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("m.gguf", "this is a GGUF file of llama.cpp"),
        ("model.safetensors", "this is a file of weights; give the directory that has it and its config.json"),
        ("model.onnx", "this is an ONNX export"),
        ("notes.txt", "this is a file, not a directory with config.json and model.safetensors"),
    ],
)
def test_a_file_in_a_models_place_is_named(name, sentence, tmp_path):
    (tmp_path / name).touch()

    assert sentence in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        (lambda name: "h.1." not in name, "12 of 28 tensors are missing from model.safetensors: 'h.1.ln_1.weight', "),
        (lambda name: "h.1." not in name, "config.json may be of a model with more layers"),
        (
            lambda name: "ln_f" not in name,
            "2 of 28 tensors are missing from model.safetensors: 'ln_f.weight', 'ln_f.bias'",
        ),
        (lambda name: "ln_f" not in name, "a file of weights may be incomplete (download it again)"),
        (lambda name: "ln_f.bias" not in name, "tensor 'ln_f.bias' is missing from model.safetensors"),
    ],
)
def test_missing_tensors_are_counted_with_the_likely_reason(kept, sentence, tiny_checkpoint):
    directory = tiny_checkpoint(n_layer=2)
    path = directory / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if kept(name)}, path, metadata={"format": "pt"})

    assert sentence in refusal(directory)


def test_tensors_of_another_model_are_shown(tiny_checkpoint):
    directory = tiny_checkpoint(n_layer=2)
    names = [f"model.layers.{layer}.self_attn.q_proj.lora_A.weight" for layer in range(5)]
    save_file({name: torch.zeros(2) for name in names}, directory / "model.safetensors", metadata={"format": "pt"})

    message = refusal(directory)

    assert "28 of 28 tensors are missing" in message
    assert "it has 'model.layers.0.self_attn.q_proj.lora_A.weight', " in message
    assert message.endswith("and 2 more, the tensors of another model or an adapter")


def test_an_index_may_have_the_wrappers_prefix_too(tiny_checkpoint):
    directory = tiny_checkpoint(max_shard_size="20KB")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    for path in directory.glob("model-*.safetensors"):
        save_file({f"module.{k}": v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    index["weight_map"] = {f"module.{name}": file for name, file in index["weight_map"].items()}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    assert resolve_model(str(directory), "checkpoint").key_prefix == "module.transformer."
