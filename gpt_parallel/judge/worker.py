"""The main program of the judge's process, started like a rank's (`engine/process/worker.py`)."""

import sys
from pathlib import Path

from gpt_parallel.engine.pipe import StatusPipe
from gpt_parallel.engine.process import worker
from gpt_parallel.schema.result import RankReport
from gpt_parallel.schema.run import Job


def main(arguments: list[str]) -> int:
    return worker.main(arguments, _run)


def _run(job: Job, rank: int, directory: Path, pipe: StatusPipe) -> RankReport:
    from gpt_parallel.judge.job import judge  # transformers and torch: after the process is pinned

    return judge(job, pipe)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
