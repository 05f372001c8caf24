"""On a GPU: a rank that is killed, hangs or runs out of memory is told clearly, and leaves no memory behind."""

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch.devices import cuda_devices, open_nvml
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.fault import FaultSpec
from tests.support.processes import ranks_alive

pytestmark = [pytest.mark.cuda(n=1), pytest.mark.timeout(600)]
SLACK = 64 << 20  # the driver may keep a little


def suite(fault=None, **given):
    settings = {"device": "cuda", "verify": False, "num_iterations": 1, **given}
    return Suite(make_settings("smoke", settings), fault=FaultSpec.parse(fault) if fault else None)


def used_bytes():
    with open_nvml() as (nvml, _):
        return nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(cuda_devices()[0].uuid)).used


@pytest.mark.parametrize(
    ("fault", "given", "told"),
    [
        ("decode:0:sigkill", {}, "rank 0 killed by signal 9 (SIGKILL; out-of-memory killer?) in phase 'round 1 of 1'"),
        ("verification:0:hang", {"timeout_s": 60.0}, "rank 0 was in phase 'generate for verification'"),
        ("decode:0:out_of_memory", {}, "out of memory: rank 0 failed in phase 'round 1 of 1'"),
        ("decode:0:nan_logits", {}, "the logits are not finite"),
    ],
)
def test_a_fault_is_told_and_its_memory_is_free_again(tmp_path, fault, given, told):
    before = used_bytes()
    broken = suite(fault, log_dir=str(tmp_path), **given)

    with pytest.raises(LaunchError) as failure:
        broken.run(broken.spec("pure_data_parallel", 1))

    assert told in str(failure.value)
    assert ranks_alive() == []
    assert used_bytes() <= before + SLACK
    healthy = suite(log_dir=str(tmp_path))
    assert healthy.run(healthy.spec("pure_data_parallel", 1)).figures.throughput_tok_s > 0


def test_what_cannot_fit_is_refused_before_a_rank_starts(monkeypatch):
    """A batch whose keys and values alone are larger than any GPU."""
    started = []
    monkeypatch.setattr("gpt_parallel.launch.local._start", lambda *_: started.append(1))
    large = suite(model="gpt2-xl", weights="random", batch_size=100_000, num_samples=100_000, prompts="random")

    with pytest.raises(SpecError, match="GPU"):
        large.run(large.spec("pure_data_parallel", 1))

    assert started == []
