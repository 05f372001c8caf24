"""A rank with one deliberate error, chosen by the environment: what verification must catch.

As a pytest plugin (`-p tests.mutants`) it makes runs use such ranks.
"""

import os
import signal
import subprocess
from pathlib import Path

VARIABLE = "GPT_PARALLEL_TEST_MUTANT"
SHOWN = "GPT_PARALLEL_TEST_SHOWN"


def swap_head_shards():
    """The output projection's rows of the other shard's heads."""
    from gpt_parallel.engine import weights

    def crossed(name, shape, shard):
        source, dimension, ranges = slices(name, shape, shard)
        if name.endswith(".attn.c_proj.weight") and len(shard.heads) < shape.n_head:
            ranges = [range(shape.n_embd - r.stop, shape.n_embd - r.start) for r in ranges]
        return source, dimension, ranges

    slices = weights._slices
    weights._slices = crossed


def add_bias_on_every_rank():
    from gpt_parallel.engine import gpt2

    def finish(residual, x, projection, reduce):
        if reduce is None:
            return projection.added_to(residual, x)
        return reduce(projection.without_bias(x).add_(projection.bias)).add_(residual)

    gpt2._finish = finish


def share_lane_caches():
    from gpt_parallel.engine import generate

    allocate = generate.Generator._allocate

    def shared(self, *arguments):
        if not hasattr(self, "_shared"):
            self._shared = allocate(self, *arguments)
        return self._shared

    generate.Generator._allocate = shared


def skip_a_stage():
    from gpt_parallel.engine import rank

    def first_only(shape, pp_size, head):
        first, *rest = stage_layers(shape, pp_size, head)
        return [first, *(range(stage.stop, stage.stop) for stage in rest)]

    stage_layers = rank.stage_layers
    rank.stage_layers = first_only


def change_a_timed_round():
    from gpt_parallel.engine import rank

    consume = rank.consume
    calls = []

    def unfaithful(events, stopwatch):
        seconds, timelines, tokens = consume(events, stopwatch)
        calls.append(1)
        if len(calls) == 3:
            tokens[0].choice.tokens[0] += 1
        return seconds, timelines, tokens

    rank.consume = unfaithful


def _only_rank_1_of_several():
    return os.environ["RANK"] == "1"


def kill_rank_1_while_generating():
    from gpt_parallel.engine import rank

    if _only_rank_1_of_several():
        rank.Rank._round = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def raise_on_rank_1_while_loading():
    from gpt_parallel.engine import rank

    def broken(*_):
        raise ArithmeticError("the weights are off today")

    if _only_rank_1_of_several():
        rank.load = broken


def exit_on_rank_1_without_a_result():
    from gpt_parallel.engine import rank

    if _only_rank_1_of_several():
        rank.Rank._round = lambda *_: os._exit(0)


def hang_on_rank_1():
    from gpt_parallel.engine import rank

    if _only_rank_1_of_several():
        rank.Rank._round = lambda *_: signal.pause()


def deliver_wrong_sums():
    from gpt_parallel.engine import collectives

    all_reduce = collectives.Collectives.all_reduce
    collectives.Collectives.all_reduce = lambda self, tensor: all_reduce(self, tensor) + 1


def show_environment():
    """Not an error: the environment as native code and child processes have it goes to a file named by the rank."""
    with (Path(os.environ[SHOWN]) / os.environ["RANK"]).open("wb") as file:
        subprocess.run(["env", "-0"], stdout=file, check=True)


def pytest_configure():
    import gpt_parallel.launch.local

    gpt_parallel.launch.local.WORKER = "tests.mutants"


def main(arguments):
    from gpt_parallel.engine import worker

    globals()[os.environ[VARIABLE]]()
    return worker.main(arguments)
