"""Runs a rank's job, by its kind."""

import torch

from gpt_parallel.engine.comm.probe import time_collectives
from gpt_parallel.engine.comm.transport import Rendezvous
from gpt_parallel.engine.faults import FaultyRank
from gpt_parallel.engine.model.attention_kernel import attention_kernel, keep_full_precision
from gpt_parallel.engine.pipe import StatusPipe
from gpt_parallel.engine.rank import Rank, device_of
from gpt_parallel.schema.result import RankReport
from gpt_parallel.schema.run import Job, JobKind, RunSpec


def run_job(job: Job, rank: int, local_rank: int, rendezvous: Rendezvous, pipe: StatusPipe) -> RankReport:
    """Run the job and return the rank's report."""
    keep_full_precision()
    with torch.inference_mode(), attention_kernel(job.spec.execution):
        if job.kind == JobKind.SELF_TEST:
            return time_collectives(job.spec, rank, device_of(job.spec, local_rank), rendezvous, pipe)
        this = _kind_of(rank, job.spec)(job.spec, rank, local_rank, rendezvous, pipe)
        if job.kind == JobKind.GENERATE:
            return this.generate()
        return this.score(job.tokens_to_score, job.tolerance)


def _kind_of(rank: int, spec: RunSpec) -> type[Rank]:
    if spec.execution.fault is None or spec.execution.fault.rank != rank:
        return Rank
    return FaultyRank
