import json
import logging
import os
import pickle

import numpy as np
import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.checkpoint import inspect_checkpoint, read_architecture
from gpt_parallel.inputs.models import resolve_model
from gpt_parallel.inputs.tokenizer import Tokenizer


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_header(path, change):
    """Rewrite a safetensors header in place, its length kept by padding."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def refusal(directory):
    with pytest.raises(SpecError) as failure:
        inspect_checkpoint(directory, read_architecture(directory))
    return str(failure.value)


def test_a_directory_of_transformers_is_understood(tiny_checkpoint):
    directory = tiny_checkpoint(n_layer=3, n_head=5, head_size=8, vocab_size=77)

    architecture = read_architecture(directory)
    sizes = architecture.num_layers, architecture.num_heads, architecture.hidden_size, architecture.mlp_size
    assert sizes == (3, 5, 40, 160)
    assert inspect_checkpoint(directory, architecture).key_prefix == "transformer."


def test_bare_and_sharded_checkpoints(tiny_checkpoint):
    bare = tiny_checkpoint(bare=True)
    assert inspect_checkpoint(bare, read_architecture(bare)).key_prefix == ""
    sharded = tiny_checkpoint(max_shard_size="10KB")
    assert len(inspect_checkpoint(sharded, read_architecture(sharded)).files) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "opt"}, "model_type is 'opt'; only gpt2, gpt_neox, llama, mistral, qwen2, qwen3"),
        ({"scale_attn_by_inverse_layer_idx": 1}, "scale_attn_by_inverse_layer_idx = 1 is neither true nor false"),
        ({"add_cross_attention": True}, "add_cross_attention = True is not supported; only False is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights are not supported"),
        ({"n_head": 0}, "n_head = 0: must be greater than 0"),
        ({"n_layer": "many", "vocab_size": -1}, "n_layer = 'many'"),
        ({"n_layer": "many", "vocab_size": -1}, "vocab_size = -1"),
        ({"activation_function": "prelu"}, "activation_function = 'prelu': must be 'gelu', 'gelu_10'"),
    ],
)
def test_a_config_that_cannot_be_run(tiny_checkpoint, changes, message):
    directory = tiny_checkpoint()
    edit_json(directory / "config.json", **changes)

    with pytest.raises(SpecError) as failure:
        read_architecture(directory)

    assert message in str(failure.value)


def test_a_config_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match=r"config\.json: cannot be read"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match=r"config\.json: not valid JSON"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SpecError, match="must hold a JSON object"):
        read_architecture(tmp_path)


def test_weights_that_do_not_fit_the_config(tiny_checkpoint):
    directory = tiny_checkpoint(n_layer=2, vocab_size=97)
    edit_json(directory / "config.json", n_layer=3, vocab_size=98)

    message = refusal(directory)

    assert "tensor 'wte.weight' has shape (97, 24), but config.json implies (98, 24)" in message
    assert "12 of 40 tensors are missing from model.safetensors: 'h.2.ln_1.weight', " in message
    assert "and 9 more; config.json may be of a model with more layers" in message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(tiny_checkpoint, keep):
    directory = tiny_checkpoint()
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])

    assert "truncated" in refusal(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(dtype="I32"), "has dtype I32; allowed: F64, F32, F16, BF16"),
        (lambda entry: entry.update(data_offsets=[8, 4]), "has offsets 8–4 that do not fit"),
        (lambda entry: entry.update(data_offsets=[0, 4]), "that do not fit its shape"),
        (lambda entry: entry.update(shape=[-24]), "malformed header entry: shape [-24]"),
        (lambda entry: entry.update(data_offsets="x"), "malformed header entry"),
        (lambda entry: entry.pop("shape"), "malformed header entry"),
    ],
)
def test_a_header_that_lies(tiny_checkpoint, change, message):
    directory = tiny_checkpoint()
    edit_header(directory / "model.safetensors", lambda header: change(header["transformer.ln_f.bias"]))

    assert message in refusal(directory)


def test_bytes_that_belong_to_no_tensor(tiny_checkpoint):
    directory = tiny_checkpoint()
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole + b"more")
    assert "4 bytes after the last tensor belong to none" in refusal(directory)

    weights.write_bytes(whole)
    edit_header(weights, lambda header: header.pop("transformer.h.0.ln_1.bias"))
    assert "leave a gap" in refusal(directory)


def test_a_header_that_is_none(tiny_checkpoint):
    weights = (directory := tiny_checkpoint()) / "model.safetensors"
    weights.write_bytes((10**15).to_bytes(8, "little") + b"{}")
    assert "truncated or not a safetensors file" in refusal(directory)
    weights.write_bytes((2).to_bytes(8, "little") + b"xx")
    assert "header cannot be read: not valid JSON" in refusal(directory)
    weights.write_bytes((2).to_bytes(8, "little") + b"[]")
    assert "header is not an object" in refusal(directory)


def test_missing_files(tiny_checkpoint):
    directory = tiny_checkpoint()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "pytorch_model.bin is pickled and never loaded" in refusal(directory)

    sharded = tiny_checkpoint(max_shard_size="10KB")
    missing = sorted(sharded.glob("model-*.safetensors"))[1]
    missing.unlink()
    assert f"{missing.name} named in model.safetensors.index.json but not there" in refusal(sharded)

    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../outside.safetensors"}}))
    assert "'../outside.safetensors' points outside the directory" in refusal(sharded)
    index.write_text("{}")
    assert "has no weight_map" in refusal(sharded)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"shape": [[1], 10**9]}, "malformed header entry: shape [[1], 1000000000]"),  # a list times 10**9
        ({"shape": ["x", 10**9]}, "malformed header entry"),
        ({"shape": [2**70, 0]}, "malformed header entry"),
        ({"shape": [True]}, "malformed header entry"),
        ({"shape": [24.0]}, "malformed header entry"),
        ({"shape": {}}, "malformed header entry"),
        ({"shape": [1] * 100_000}, "malformed header entry: shape [1, 1, 1, 1, 1, 1, ...]"),
        ({"shape": [2**62] * 8}, "that do not fit its shape"),
        ({"data_offsets": [0, 2**62]}, "that do not fit its shape"),
        ({"data_offsets": [0.0, 96]}, "malformed header entry"),
        ({"data_offsets": [0, 96, 97]}, "malformed header entry"),
        ({"data_offsets": [-96, 0]}, "malformed header entry"),
        ({"dtype": ["F32"]}, "malformed header entry"),
        ({"dtype": "\x1b[31m" + "x" * 10_000}, "has dtype '\\x1b[31mxxx"),
    ],
)
def test_hostile_sizes_are_refused_at_once(tiny_checkpoint, entry, message):
    directory = tiny_checkpoint()
    edit_header(directory / "model.safetensors", lambda header: header["transformer.ln_f.bias"].update(entry))

    found = refusal(directory)

    assert message in found
    assert len(found) < 600
    assert "\x1b" not in found


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": {}, "a": {}}', "duplicate key 'a'"),
        (b'{"\xff": {}}', "not valid UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"__metadata__": true}', "__metadata__ must map names to texts"),
        (b'{"__metadata__": {"format": 5}}', "__metadata__ must map names to texts"),
        (rb'{"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}', "surrogates not allowed"),
        (b'{"a": 7}', "tensor 'a' has a malformed header entry"),
        (b'{"a": null}', "malformed header entry"),
        (b'{"a\\u001b[2J\\u0000": 7}', "tensor 'a\\x1b[2J\\x00' has a malformed"),
        (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 0]}}', "NaN is not a JSON number"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}", "not valid JSON"),
    ],
)
def test_hostile_headers(tiny_checkpoint, header, message):
    directory = tiny_checkpoint()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    assert message in refusal(directory)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 3, 10**12])
def test_a_header_longer_than_its_file(tiny_checkpoint, length):
    weights = (directory := tiny_checkpoint()) / "model.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + b"{}")

    assert f"truncated or not a safetensors file (header of {length} bytes in 10)" in refusal(directory)


def test_a_header_that_is_really_that_long(tiny_checkpoint):
    weights = (directory := tiny_checkpoint()) / "model.safetensors"
    weights.write_bytes((10**11).to_bytes(8, "little"))
    os.truncate(weights, 10**12)

    assert "header of 100000000000 bytes; allowed: at most 33554432" in refusal(directory)


def test_tensors_that_overlap(tiny_checkpoint):
    def overlap(header):
        first, second = (header[f"transformer.ln_f.{kind}"] for kind in ("bias", "weight"))
        second["data_offsets"] = first["data_offsets"]

    directory = tiny_checkpoint()
    edit_header(directory / "model.safetensors", overlap)

    assert "tensors overlap or leave a gap" in refusal(directory)


def test_a_tensor_in_two_files(tiny_checkpoint):
    directory = tiny_checkpoint(max_shard_size="10KB")
    first, second = sorted(directory.glob("model-*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())

    assert f"is in {first.name} too" in refusal(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a named pipe, not a regular file"),
        (os.mkdir, "is a directory, not a regular file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_what_has_the_name_of_weights_and_is_no_file(tiny_checkpoint, name, make, message):
    directory = tiny_checkpoint()
    (directory / name).unlink(missing_ok=True)
    make(directory / name)

    assert f"{directory / name}: cannot be read ({message}" in refusal(directory)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["/etc/passwd"], "'/etc/passwd' points outside the directory"),
        ([".."], "'..' is not a safetensors file's name"),
        ([""], "'' is not a safetensors file's name"),
        (["pytorch_model.bin"], "'pytorch_model.bin' is not a safetensors file's name"),
        (["a\0.safetensors"], "cannot be read (embedded null byte)"),
        (["\ud800.safetensors"], "cannot be read ("),
        (
            [f"{index}.safetensors" for index in range(9999)],
            "0.safetensors, 1.safetensors, 10.safetensors and 9996 more",
        ),
        (["x" * 300 + ".safetensors"], "cannot be read (File name too long)"),
        ([5], "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_hostile_indices(tiny_checkpoint, names, message):
    directory = tiny_checkpoint()
    index = {"weight_map": {f"tensor{number}": name for number, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    assert message in refusal(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 10**9}, "n_layer = 1000000000: must be at most 10000"),
        ({"n_layer": True}, "n_layer = True: must be an integer"),
        ({"n_layer": "2"}, "n_layer = '2': must be an integer"),
        ({"n_layer": 2.0}, "n_layer = 2.0: must be an integer"),
        ({"n_head": 0}, "n_head = 0: must be greater than 0"),
        ({"n_embd": 10**400}, "n_embd = a number of 1329 bits"),
        ({"n_embd": [24]}, "n_embd = [24]"),
        ({"n_positions": -5}, "n_positions = -5"),
        ({"n_embd": 3 * 2**22, "n_inner": 2**24}, "weights; allowed: at most 1.10e+12"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon = nan"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon = '1e-5'"),
        ({"activation_function": ["x" * 9999] * 99}, "activation_function = ['xxx"),
        ({"model_type": {"gpt2": "y" * 9999}}, "model_type is {'gpt2': 'yyy"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map names Python code that comes with the model"),
    ],
)
def test_hostile_configurations(tiny_checkpoint, changes, message):
    directory = tiny_checkpoint()
    edit_json(directory / "config.json", **changes)

    found = refusal(directory)

    assert message in found
    assert str(directory / "config.json") in found
    assert len(found) < 900


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "gpt2", "n_layer": 1, "n_layer": 2}', "duplicate key 'n_layer'"),
        (b'{"model_type": "gpt2\xff"}', "not valid UTF-8"),
        (b'{"a":' * 100_000, "nested deeper than 64 levels"),
        (b'{"model_type": "gpt2"}' + b" " * (100 << 20), "larger than 1 MiB, the most allowed"),
    ],
)
def test_configurations_that_are_none(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(SpecError, match=message):
        read_architecture(tmp_path)


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self._marker),)


def test_code_that_comes_with_a_model_is_never_run(tiny_checkpoint, tmp_path):
    directory, marker = tiny_checkpoint(), tmp_path / "marker"
    pickled = pickle.dumps(Malicious(marker))
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (directory / name).write_bytes(pickled)
    for name in ("modeling_evil.py", "__init__.py", "conftest.py"):
        (directory / name).write_text(f"import os; os.mkdir({str(marker)!r})")

    assert resolve_model(str(directory), "checkpoint").files == ("model.safetensors",)
    edit_json(directory / "config.json", auto_map={"AutoModel": "modeling_evil.Evil"})
    assert "such code is never run" in refusal(directory)
    edit_json(directory / "config.json", auto_map=None)
    (directory / "model.safetensors").write_bytes(pickled)
    assert "not a safetensors file" in refusal(directory)
    (directory / "model.safetensors").unlink()
    assert "pytorch_model.bin is pickled and never loaded" in refusal(directory)
    with pytest.raises(SpecError, match="is pickled and never loaded"):
        resolve_model(str(directory), "auto")

    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists(), "the pickle would have left it"


def convert(path, dtype, values):
    """Store the weights as another number type; `values` has the bits of the last one of `transformer.ln_f.bias`."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), np.frombuffer(raw[8 + length :], "<f4")
    kind = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}[dtype]
    if dtype == "BF16":
        bits = (data.view("<u4") >> 16).astype(kind)
    else:
        bits = data.astype(kind.replace("u", "f")).view(kind).copy()
    bits[header["transformer.ln_f.bias"]["data_offsets"][1] // 4 - 1] = values
    for entry in header.values():
        if "data_offsets" in entry:
            entry["dtype"] = dtype
            entry["data_offsets"] = [offset // 4 * bits.itemsize for offset in entry["data_offsets"]]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bits.tobytes())


@pytest.mark.parametrize(
    ("dtype", "bits", "finite"),
    [
        ("F64", 0x7FF0_0000_0000_0000, False),
        ("F64", 0xFFF8_0000_0000_0001, False),
        ("F64", 0x7FEF_FFFF_FFFF_FFFF, True),
        ("F32", 0x7F80_0000, False),
        ("F32", 0xFFC0_0001, False),
        ("F32", 0x7F7F_FFFF, True),
        ("F16", 0xFC00, False),
        ("F16", 0x7E00, False),
        ("F16", 0x7BFF, True),
        ("BF16", 0x7F80, False),
        ("BF16", 0xFFC0, False),
        ("BF16", 0x7F7F, True),
    ],
)
def test_weights_that_are_not_finite_are_refused(tiny_checkpoint, dtype, bits, finite):
    directory = tiny_checkpoint()
    convert(directory / "model.safetensors", dtype, bits)

    if finite:
        assert resolve_model(str(directory), "checkpoint").files == ("model.safetensors",)
    else:
        assert refusal(directory).startswith(
            f"{directory / 'model.safetensors'}: tensor 'transformer.ln_f.bias' holds NaN or infinite weights"
        )


@pytest.mark.parametrize("where", [0, 65_535, 65_536, -1])
def test_every_weight_is_looked_at(tiny_checkpoint, where):
    """The vocabulary's tensor takes more than one read of 256 KiB."""
    directory = tiny_checkpoint(vocab_size=5000)
    path = directory / "model.safetensors"
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + length])["transformer.wte.weight"]["data_offsets"]
    at = 8 + length + (begin + 4 * where if where >= 0 else end + 4 * where)
    raw[at : at + 4] = np.float32("nan").tobytes()
    path.write_bytes(raw)

    assert "tensor 'transformer.wte.weight' holds NaN" in refusal(directory)


def test_tensors_that_no_model_reads_may_hold_anything(tiny_checkpoint):
    directory = tiny_checkpoint()
    path = directory / "model.safetensors"
    nan = np.array([np.nan], "<f4").tobytes()

    def add(header):
        size = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [size, size + 4]}

    path.write_bytes(path.read_bytes() + nan)
    edit_header(path, add)

    assert inspect_checkpoint(directory, read_architecture(directory)).files == ("model.safetensors",)


def test_weights_are_read_once_until_they_change(tiny_checkpoint, caplog):
    caplog.set_level(logging.INFO, "gpt_parallel")
    directory = tiny_checkpoint()
    for _ in range(3):
        resolve_model(str(directory), "checkpoint")
    assert caplog.text.count("of weights for NaN and infinity") == 1

    path = directory / "model.safetensors"
    raw, before = path.read_bytes(), path.stat()
    path.write_bytes(raw[:-4] + np.float32("nan").tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))

    assert "holds NaN" in refusal(directory)
    assert "holds NaN" in refusal(directory), "what was found is remembered, too"
    assert caplog.text.count("of weights for NaN and infinity") == 2


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "~nobody-of-this-name/x", "/" + "x/" * 3000, ""])
def test_names_that_no_model_has(name):
    with pytest.raises(SpecError) as failure:
        resolve_model(name, "auto", offline=True)
    assert len(str(failure.value)) < 500


def test_a_directory_whose_name_is_not_utf8(tiny_checkpoint, tmp_path):
    directory = tiny_checkpoint().rename(os.fsdecode(bytes(tmp_path / "m") + b"\xff"))

    with pytest.raises(SpecError, match=r"directory = .*surrogates not allowed"):
        resolve_model(str(directory), "checkpoint")


def test_a_tokenizer_that_is_no_file(tiny_checkpoint):
    model = resolve_model(str(directory := tiny_checkpoint()), "auto")
    os.mkfifo(directory / "tokenizer.json")
    with pytest.raises(SpecError, match=r"tokenizer\.json: cannot be read \(is a named pipe"):
        Tokenizer(model)


def test_resolving_names_directories_and_weights(tiny_checkpoint):
    directory = tiny_checkpoint()

    stored = resolve_model(str(directory), "auto")
    assert (stored.weights, stored.directory) == ("checkpoint", str(directory))
    assert resolve_model(str(directory), "random", 7).weights_origin == "random (seed 7)"
    assert resolve_model("qwen3-nano", "auto").weights == "random"
    assert resolve_model("gpt2-xl", "random").architecture.num_heads == 25


@pytest.mark.parametrize(
    ("name", "weights", "offline", "message"),
    [
        ("gpt3", "random", False, "'gpt3': no such directory, and not a known model \\(gpt2, gpt2-medium"),
        ("./absent", "random", False, "no such directory"),
        ("gpt2", "checkpoint", True, "not on this disk, and offline forbids a download; .* use weights 'random'"),
        ("qwen3-nano", "checkpoint", False, "'qwen3-nano' has no trained weights"),
        ("nobody/nothing", "checkpoint", False, "could not be fetched from the hub"),
    ],
)
def test_models_that_cannot_be_had(name, weights, offline, message):
    with pytest.raises(SpecError, match=message):
        resolve_model(name, weights, offline=offline)


def cache(checkpoint, tmp_path, monkeypatch):
    """Put a checkpoint where huggingface_hub keeps gpt2: in a snapshot directory of a revision."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    snapshot = cache / "models--openai-community--gpt2" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (cache / "models--openai-community--gpt2" / "refs").mkdir()
    (cache / "models--openai-community--gpt2" / "refs" / "main").write_text("0" * 40)
    checkpoint.rename(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return snapshot


def test_a_cached_download_is_found_by_name(tiny_checkpoint, tmp_path, monkeypatch):
    cache(tiny_checkpoint(), tmp_path, monkeypatch)

    found = resolve_model("gpt2", "auto")

    assert found.weights == "checkpoint"
    assert found.architecture.num_layers == 2


def test_a_download_that_was_cut_off_is_not_there_yet(tiny_checkpoint, tmp_path, monkeypatch):
    snapshot = cache(tiny_checkpoint(max_shard_size="10KB"), tmp_path, monkeypatch)
    next(snapshot.glob("model-00002*")).unlink()

    assert resolve_model("gpt2", "auto").weights == "random"
    with pytest.raises(SpecError, match="not on this disk, and offline forbids a download"):
        resolve_model("gpt2", "checkpoint", offline=True)


def test_text_without_a_tokenizer_is_bytes():
    tokenizer = Tokenizer(resolve_model("gpt2-nano", "random"))

    assert tokenizer.encode("né") == [110, 195, 169]
    assert tokenizer.decode((110,)) is None
    assert tokenizer.description == "bytes as token ids"


def test_a_tokenizer_on_disk_is_used(tiny_checkpoint):
    from tokenizers import ByteLevelBPETokenizer

    directory = tiny_checkpoint(vocab_size=300)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["low lower lowest"] * 9, vocab_size=270, min_frequency=2)
    trained.save_model(str(directory))

    tokenizer = Tokenizer(resolve_model(str(directory), "auto"))

    ids = tokenizer.encode("lower")
    assert len(ids) < 5
    assert tokenizer.decode(tuple(ids)) == "lower"
    assert tokenizer.description == "model's tokenizer"
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(SpecError, match="tokenizer's files cannot be read"):
        Tokenizer(resolve_model(str(directory), "auto"))


def test_a_tokenizer_of_another_family_is_its_own_file(tmp_path):
    """Only GPT-2 splits text as its pair of files implies; and a model may know more ids than its tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    model = resolve_model("llama-nano", "random").model_copy(update={"directory": str(tmp_path)})
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["low lower lowest"], vocab_size=270, show_progress=False)
    trained.save_model(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"of sentencepiece")
    assert Tokenizer(model).description.startswith("bytes as token ids (tokenizer.model is not read; ")

    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(model)

    assert tokenizer.description == "model's tokenizer"
    ids = tokenizer.encode("lowest")
    assert tokenizer.decode((*ids, 4095)) == "lowest"
