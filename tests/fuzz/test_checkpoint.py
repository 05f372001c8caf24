"""Whatever a model's directory holds: it is refused with sentences, or safetensors reads it."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from gpt_parallel.inputs.checkpoint import inspect_checkpoint, read_architecture, weight_files
from gpt_parallel.inputs.safetensors_file import read_header
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.registry import family_of, tensor_shapes
from tests.fuzz.mutation import FUZZ, are_named, attempt, damaged, json_texts, mutated

SHAPE = Architecture(n_layer=1, n_head=1, n_embd=2, n_inner=8, vocab_size=3, n_positions=4)
CONFIG = {"model_type": "gpt2", "activation_function": "gelu_new", **family_of(SHAPE).to_config(SHAPE)}
INDEX = {"metadata": {}, "weight_map": dict.fromkeys(tensor_shapes(SHAPE), "model.safetensors")}


def header():
    entries, stop = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensor_shapes(SHAPE).items():
        start, stop = stop, stop + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
    return entries


HEADER = header()
DATA = bytes(4 * sum(map(math.prod, tensor_shapes(SHAPE).values())))


def safetensors(header, data=DATA):
    return len(header).to_bytes(8, "little") + header + data


def write(directory, config=None, index=None, weights=None):
    (directory / "config.json").write_bytes(json.dumps(CONFIG).encode() if config is None else config)
    (directory / "model.safetensors").write_bytes(
        safetensors(json.dumps(HEADER).encode()) if weights is None else weights
    )
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    if index is not None:
        (directory / "model.safetensors.index.json").write_bytes(index)


def accepts(directory, read, *arguments):
    found, problems = attempt(read, *arguments)
    places = [f"{kind}{directory}" for kind in ("", "model configuration ", "index of weights ")]
    assert are_named(problems, *places)
    return found is not None


FILES = mutated([HEADER]).map(lambda value: json.dumps(value).encode()) | json_texts([HEADER])


@FUZZ
@given(damaged(FILES.map(safetensors)) | FILES.map(safetensors))
def test_weights_are_readable_or_refused(directory, content):
    write(directory, weights=content)

    path = directory / "model.safetensors"
    if accepts(directory, read_header, path):
        with safe_open(path, framework="np") as stored:
            assert set(stored.keys()) == set(read_header(path))
    if accepts(directory, inspect_checkpoint, directory, SHAPE):
        with safe_open(path, framework="np") as stored:
            assert stored.get_tensor("wte.weight").shape == (3, 2)


@FUZZ
@given(json_texts([CONFIG]), json_texts([INDEX]), st.booleans())
def test_configurations_and_indices_are_read_or_refused(directory, config, index, has_index):
    write(directory, config=config, index=index if has_index else None)

    if accepts(directory, read_architecture, directory):
        assert read_architecture(directory).num_weights <= 2**40
    accepts(directory, weight_files, directory)


def test_what_is_broken_here_is_valid_as_it_is(directory):
    write(directory, index=json.dumps(INDEX).encode())

    assert read_architecture(directory) == SHAPE
    assert inspect_checkpoint(directory, SHAPE).key_prefix == ""
