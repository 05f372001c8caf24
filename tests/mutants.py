"""A rank with one deliberate error, chosen by the environment: what verification must catch.

As a pytest plugin (`-p tests.mutants`) it makes runs use such ranks.
"""

import os
import signal
import sys

VARIABLE = "GPT_PARALLEL_TEST_MUTANT"


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

    def forward(self, x, keys, values, step, reduce):
        x = x + reduce(self.attn(self.ln_1(x), keys, values, step) + self.attn.c_proj.bias)
        return x + reduce(self.mlp(self.ln_2(x)) + self.mlp.c_proj.bias)

    gpt2.Block.forward = forward


def share_lane_caches():
    from gpt_parallel.engine import generate

    allocate = generate.Generator._allocate

    def shared(self, lane, device):
        if not hasattr(self, "_shared"):
            self._shared = allocate(self, lane, device)
        return self._shared

    generate.Generator._allocate = shared


def skip_a_stage():
    from gpt_parallel.engine import rank

    def first_only(shape, pp_size):
        first, *rest = stage_layers(shape, pp_size)
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


def pytest_configure():
    import gpt_parallel.launch.local

    gpt_parallel.launch.local.WORKER = "tests.mutants"


if __name__ == "__main__":
    from gpt_parallel.engine import worker

    # Pinning comes first in the real worker too, and these imports bring torch in.
    globals()[os.environ[VARIABLE]]()
    sys.exit(worker.main(sys.argv[1:]))
