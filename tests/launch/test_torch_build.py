"""What torch is built for is what its own version.py says, whatever its wheel is called."""

import os
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from gpt_parallel.launch import torch_build as module
from gpt_parallel.launch.torch_build import TorchBuild, torch_build

VERSION = """
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda']
__version__ = {version!r}
debug = False
cuda: Optional[str] = {cuda!r}
hip: Optional[str] = {hip!r}
"""


@pytest.fixture
def torch(monkeypatch, tmp_path):
    """torch(text, metadata) has this version.py in a torch that fails if it is imported; None: there is none of it."""

    def install(text, metadata=None):
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('imported')")
        if text is not None:
            (tmp_path / "torch" / "version.py").write_text(text)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, "torch", raising=False)

        def version(name):
            if metadata is None:
                raise PackageNotFoundError(name)
            return metadata

        monkeypatch.setattr(module, "version", version)

    return install


@pytest.mark.parametrize(
    ("version", "cuda", "hip", "expected", "shown"),
    [
        ("2.13.0+cpu", None, None, TorchBuild("2.13.0+cpu", "CPU"), "CPU"),
        ("2.13.0", None, None, TorchBuild("2.13.0", "CPU"), "CPU"),
        ("2.11.0+cu130", "13.0", None, TorchBuild("2.11.0+cu130", "CUDA", "13.0"), "CUDA 13.0"),
        ("2.11.0", "12.8", None, TorchBuild("2.11.0", "CUDA", "12.8"), "CUDA 12.8"),
        ("2.12.0+rocm6.4", None, "6.4.43482", TorchBuild("2.12.0+rocm6.4", "ROCm", "6.4.43482"), "ROCm 6.4.43482"),
    ],
)
def test_a_build_is_told_by_torch_itself(torch, version, cuda, hip, expected, shown):
    """The wheel of the third was once called 2.11.0, and taken for a CPU build."""
    torch(VERSION.format(version=version, cuda=cuda, hip=hip), metadata="2.11.0")

    assert torch_build() == expected
    assert str(expected) == shown
    assert expected.cuda == (tuple(map(int, cuda.split("."))) if cuda else None)


@pytest.mark.parametrize("text", [None, "cuda = (", "cuda = compute()", "__version__ = 3"])
@pytest.mark.parametrize(
    ("metadata", "expected"),
    [("2.12.0+cpu", TorchBuild("2.12.0+cpu", "CPU")), ("2.12.0", TorchBuild("2.12.0", "unknown")), (None, None)],
)
def test_a_version_that_cannot_be_read_is_asked_of_the_wheel(torch, text, metadata, expected):
    torch(text, metadata)

    assert torch_build() == expected


@pytest.mark.skipif("fake_gpu" in os.environ.get("PYTHONPATH", ""), reason="torch's build is faked")
def test_the_installed_torch():
    build = torch_build()
    import torch

    assert build.version == torch.__version__
    assert build.release == (torch.version.cuda or torch.version.hip)


def test_no_torch_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", version)

    assert torch_build() is None
