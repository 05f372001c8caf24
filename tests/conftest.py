"""What the tests share: CPU ranks whatever the machine has, a deadline for each, and tiny checkpoints.

A test that is marked `cuda(n=2)` sees the machine's GPUs, and is skipped where there are fewer than so many. No other
test sees any, so that it tests the same everywhere; those that fake GPUs make them visible themselves.
"""

import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from gpt_parallel.launch import fork_server
from gpt_parallel.launch.devices import cuda_devices
from tests.support import warm

VISIBLE = "CUDA_VISIBLE_DEVICES"
USERS_OWN = "GPT_PARALLEL_TEST_VISIBLE_DEVICES"  # what the user had that say, or "all"; pytest-xdist hands it on

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
os.environ.setdefault(USERS_OWN, os.environ.get(VISIBLE, "all"))
os.environ[VISIBLE] = ""

fork_server.subprocess = warm.Subprocess(warm.RankServer)


def pytest_configure(config):
    # Warnings of this project's own code fail its own tests; in users' runs plugins of all kinds may warn.
    config.addinivalue_line("filterwarnings", "error")
    # What pytest-benchmark has to say (nothing saved yet to compare with, say) is no reason to fail.
    config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")
    # What the judge has proved for one test it need not prove for another; the user's own verdicts stay out of it.
    if hasattr(config, "cache"):  # not with -p no:cacheprovider
        os.environ["GPT_PARALLEL_CACHE"] = str(config.cache.mkdir("gpt_parallel"))


@contextmanager
def _users_gpus():
    """With the GPUs that the user lets us see; an import of the warm server's may have spoken to their driver."""
    cuda_devices.cache_clear()
    with pytest.MonkeyPatch.context() as patch, warm.users_server():
        if os.environ[USERS_OWN] == "all":
            patch.delenv(VISIBLE)
        else:
            patch.setenv(VISIBLE, os.environ[USERS_OWN])
        yield
    cuda_devices.cache_clear()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Around all of a test's fixtures too."""
    with _users_gpus() if item.get_closest_marker("cuda") else nullcontext():
        return (yield)


def _skip_without_gpus(item, mark):
    with _users_gpus():
        count = len(cuda_devices())
    needed = mark.kwargs.get("n", *mark.args or (1,))
    if count < needed:
        item.add_marker(pytest.mark.skip(reason=f"needs {needed} NVIDIA GPU(s), {count} can be used here"))


def pytest_collection_modifyitems(items):
    for item in items:
        if mark := item.get_closest_marker("cuda"):
            _skip_without_gpus(item, mark)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(240))


def pytest_collection_finish():
    """Models here are so small that more threads only wait for each other."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def users_server():
    """For tests of what ranks are forked from, and of what lies in its memory: it is as users have it."""
    with warm.users_server():
        yield


@pytest.fixture(scope="session")
def make_tiny_checkpoint():
    """make(directory, ...) saves a small random GPT-2 there, as transformers does, and returns the directory."""

    def make(
        directory: Path,
        *,
        n_layer=2,
        n_head=3,
        head_size=8,
        vocab_size=97,
        n_positions=64,
        seed=0,
        bare=False,
        max_shard_size="5GB",
    ) -> Path:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.set_num_threads(1)
        config = GPT2Config(
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_head * head_size,
            vocab_size=vocab_size,
            n_positions=n_positions,
            bos_token_id=0,
            eos_token_id=0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config).eval()
            for name, parameter in model.named_parameters():
                # Wide enough weights, and biases that are not zero: every part must show in the tokens.
                wide = name.startswith("transformer.h.") and name.endswith("weight") and ".ln_" not in name
                spread = 1.5 / config.n_embd**0.5 if wide else 0.1
                parameter.data = (1.0 if ".ln_" in name and name.endswith("weight") else 0.0) + spread * torch.randn(
                    parameter.shape
                )
        saved = model.transformer if bare else model
        saved.save_pretrained(directory, max_shard_size=max_shard_size)
        return Path(directory)

    return make


@pytest.fixture
def tiny_checkpoint(make_tiny_checkpoint, tmp_path):
    """tiny_checkpoint(...) saves one in a fresh temporary directory."""

    def make(**sizes) -> Path:
        return make_tiny_checkpoint(tmp_path / f"checkpoint_{len(list(tmp_path.iterdir()))}", **sizes)

    return make
