"""What ps, top and nvidia-smi show of the processes of a case."""

import psutil
import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import fork_server
from tests.support.processes import ranks_alive, title


@pytest.mark.usefixtures("users_server")
def test_server_ranks_and_judge_are_called_what_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT_PARALLEL_CACHE", str(tmp_path))  # so that the judge is asked
    titles = {}
    suite = Suite(make_settings("smoke", {"num_iterations": 1, "device": "cpu"}))

    def look(rank, phase):
        if phase in ("judge: load weights", "round 1 of 1"):
            titles.setdefault(phase, {title(process) for process in ranks_alive()})
            titles["server"] = title(psutil.Process(fork_server._current.pid))

    suite.runner.on_phase = look
    suite.run(suite.spec("tensor_data_hybrid", 2))

    assert titles == {
        "server": "gpt_parallel: rank server",
        "judge: load weights": {"gpt_parallel: judge"},
        "round 1 of 1": {f"gpt_parallel: tensor_data_hybrid-2gpu rank {rank}/2" for rank in (0, 1)},
    }
