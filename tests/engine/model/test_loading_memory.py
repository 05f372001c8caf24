"""A rank that loads its shard never holds much more than the shard."""

import json
import subprocess
import sys

import pytest

LOAD = """
import json, sys, threading
from pathlib import Path
import torch
from gpt_parallel.inputs.checkpoint import inspect_checkpoint, read_architecture
from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.interface import num_bytes
from gpt_parallel.layout.stages import stage_layers
from gpt_parallel.layout.part import part_at
from gpt_parallel.schema.families.registry import tensor_shapes
from gpt_parallel.engine.model.weights import load
from gpt_parallel.schema.run import ModelSpec

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

directory, weights, pp, tp = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
shape = read_architecture(directory)
stored = inspect_checkpoint(directory, shape)
spec = ModelSpec(name="m", architecture=shape, weights=weights, directory=str(directory), files=stored.files,
                 key_prefix=stored.key_prefix)
part = part_at(shape, tp - 1, tp, stage_layers(shape, pp)[-1], has_embedding=pp == 1)
torch.empty(1).add_(1)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
with torch.inference_mode():
    model = build(shape, part)
    load(model, spec)
sizes = {name: 4 * torch.Size(size).numel() for name, size in tensor_shapes(shape).items()}
print(json.dumps({"grown": status("VmHWM") - before, "shard": num_bytes(model.parameters()),
                  "largest": max(sizes.values()), "model": sum(sizes.values())}))
"""


@pytest.fixture(scope="module")
def big_checkpoint(make_tiny_checkpoint, tmp_path_factory):
    """About 240 MB, so that what Python itself allocates does not count."""
    return make_tiny_checkpoint(
        tmp_path_factory.mktemp("big"), n_layer=8, n_head=12, head_size=64, vocab_size=5000, n_positions=64
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
@pytest.mark.parametrize("weights", ["checkpoint", "random"])
@pytest.mark.parametrize(("pp", "tp"), [(1, 1), (1, 4), (2, 2)])
def test_peak_stays_near_the_shard(big_checkpoint, weights, pp, tp):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(big_checkpoint), weights, str(pp), str(tp)],
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert sizes["shard"] < sizes["model"] * 1.05 / (pp * tp) + 2 * sizes["largest"]
    assert sizes["grown"] <= 1.3 * sizes["shard"] + sizes["largest"]
