"""What the judge's process does: a rank's, with transformers in place of the engine. Started as `engine/worker.py`."""

import sys
from pathlib import Path

from gpt_parallel.engine import worker
from gpt_parallel.engine.events import EventPipe
from gpt_parallel.result import RankReport
from gpt_parallel.spec import Job


def main(arguments: list[str]) -> int:
    return worker.main(arguments, _run)


def _run(job: Job, rank: int, directory: Path, pipe: EventPipe) -> RankReport:
    from gpt_parallel.judge.job import judge  # transformers and torch: after the process is pinned

    return judge(job, pipe)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
