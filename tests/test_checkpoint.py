import json

import pytest

from gpt_parallel.checkpoint import inspect_checkpoint, read_architecture
from gpt_parallel.models import Tokenizer, resolve_model
from gpt_parallel.spec import SpecError


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
    assert (architecture.n_layer, architecture.n_head, architecture.n_embd, architecture.n_inner) == (3, 5, 40, 160)
    assert inspect_checkpoint(directory, architecture).key_prefix == "transformer."


def test_bare_and_sharded_checkpoints(tiny_checkpoint):
    bare = tiny_checkpoint(bare=True)
    assert inspect_checkpoint(bare, read_architecture(bare)).key_prefix == ""
    sharded = tiny_checkpoint(max_shard_size="10KB")
    assert len(inspect_checkpoint(sharded, read_architecture(sharded)).files) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'gpt2' models"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False is not supported"),
        ({"n_head": 0}, "n_head = 0: Input should be greater than 0"),
        ({"n_layer": "many", "vocab_size": -1}, "n_layer = 'many'"),
        ({"n_layer": "many", "vocab_size": -1}, "vocab_size = -1"),
        ({"activation_function": "swish"}, "activation_function = 'swish': Input should be 'gelu_new'"),
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
    assert "tensor 'h.2.ln_1.weight' is missing from model.safetensors" in message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(tiny_checkpoint, keep):
    directory = tiny_checkpoint()
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])

    assert "truncated" in refusal(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(dtype="I8"), "has dtype I8; allowed: F64, F32, F16, BF16"),
        (lambda entry: entry.update(data_offsets=[8, 4]), "has offsets 8–4 that do not fit"),
        (lambda entry: entry.update(data_offsets=[0, 4]), "that do not fit its shape"),
        (lambda entry: entry.update(shape=[-24]), "that do not fit its shape"),
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
    assert "header is not valid JSON" in refusal(directory)
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


def test_resolving_names_directories_and_weights(tiny_checkpoint):
    directory = tiny_checkpoint()

    stored = resolve_model(str(directory), "auto")
    assert (stored.weights, stored.directory) == ("checkpoint", str(directory))
    assert resolve_model(str(directory), "random", 7).weights_origin == "random (seed 7)"
    assert resolve_model("gpt2-nano", "auto").weights == "random"
    assert resolve_model("gpt2-xl", "random").architecture.n_head == 25


@pytest.mark.parametrize(
    ("name", "weights", "offline", "message"),
    [
        ("gpt3", "random", False, "'gpt3': no such directory, and not a known model \\(gpt2, gpt2-medium"),
        ("./absent", "random", False, "no such directory"),
        ("gpt2", "checkpoint", True, "not on this disk and offline was asked for; .* use weights 'random'"),
        ("gpt2-nano", "checkpoint", False, "'gpt2-nano' has no trained weights"),
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
    assert found.architecture.n_layer == 2


def test_a_download_that_was_cut_off_is_not_there_yet(tiny_checkpoint, tmp_path, monkeypatch):
    snapshot = cache(tiny_checkpoint(max_shard_size="10KB"), tmp_path, monkeypatch)
    next(snapshot.glob("model-00002*")).unlink()

    assert resolve_model("gpt2", "auto").weights == "random"
    with pytest.raises(SpecError, match="not on this disk and offline was asked for"):
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
