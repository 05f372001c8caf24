"""A rank with one deliberate error, chosen by the environment: what verification must catch.

As a pytest plugin (`-p tests.support.mutants`) it makes runs use such ranks.
"""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from tests.support import family_mutants

VARIABLE = "GPT_PARALLEL_TEST_MUTANT"
SHOWN = "GPT_PARALLEL_TEST_SHOWN"
PHASE = "GPT_PARALLEL_TEST_PHASE"
HALT = "GPT_PARALLEL_TEST_HALT"


def swap_head_shards():
    """The output projection's rows of the other shard's heads."""
    from gpt_parallel.engine.model import gpt2

    def crossed(linear, name, rows):
        width = linear.weight.shape[0]
        if name.endswith(".attn.c_proj"):
            rows = range(width - rows.stop, width - rows.start)
        return row_parallel(linear, name, rows)

    row_parallel = gpt2._row_parallel
    gpt2._row_parallel = crossed


def add_bias_on_every_rank():
    from gpt_parallel.engine.model import gpt2

    def finish(residual, x, projection, reduce):
        if reduce is None:
            return projection.added_to(residual, x)
        return reduce(projection.without_bias(x).add_(projection.bias)).add_(residual)

    gpt2.finish = finish


def share_lane_caches():
    from gpt_parallel.engine.generation import loop as generate

    allocate = generate.Generator._allocate

    def shared(self, *arguments):
        if not hasattr(self, "_shared"):
            self._shared = allocate(self, *arguments)
        return self._shared

    generate.Generator._allocate = shared


def skip_a_stage():
    from gpt_parallel.layout import part

    def first_only(architecture, pp_size, head):
        first, *rest = stage_layers(architecture, pp_size, head)
        return [first, *(range(stage.stop, stage.stop) for stage in rest)]

    stage_layers = part.stage_layers
    part.stage_layers = first_only


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


def _in_the_second_round(prepare):
    """Have an error strike in that round alone: `prepare` gives what makes it and what takes it back."""
    from gpt_parallel.engine.rank import Rank

    def timed(self, index, *arguments):
        if index != 1:
            return round_(self, index, *arguments)
        mend = prepare()
        try:
            return round_(self, index, *arguments)
        finally:
            mend()

    round_ = Rank._round
    Rank._round = timed


def attend_to_one_key_fewer_in_a_timed_round():
    from gpt_parallel.engine.model import gpt2

    attend = gpt2.attend

    def prepare():
        decode_without_the_first_key()
        return lambda: setattr(gpt2, "attend", attend)

    _in_the_second_round(prepare)


def choose_the_twin_in_a_timed_round():
    """Of two vocabulary ids with the same weights, as some checkpoints in a test have them, the other one."""
    from gpt_parallel.engine import rank

    changed_tokens = rank.changed_tokens

    def prepare():
        def twins(records, tokens):
            return changed_tokens(records, {key: tuple(token ^ 1 for token in own) for key, own in tokens.items()})

        rank.changed_tokens = twins
        return lambda: setattr(rank, "changed_tokens", changed_tokens)

    _in_the_second_round(prepare)


def _only_rank_1_of_several():
    return os.environ["RANK"] == "1"


def raise_on_rank_1_while_loading():
    from gpt_parallel.engine import rank

    def broken(*_):
        raise ArithmeticError("the weights are off today")

    if _only_rank_1_of_several():
        rank.load = broken


def warn_while_loading():
    """As other packages do when they are imported or used for the first time."""
    from gpt_parallel.engine import rank

    def loud(*arguments):
        warnings.warn("use something newer", FutureWarning, stacklevel=1)
        return load(*arguments)

    load = rank.load
    rank.load = loud


def print_environment_and_fail_with_a_token():
    from gpt_parallel.engine import rank

    def broken(*_):
        print(dict(os.environ), file=sys.stderr, flush=True)
        raise PermissionError(f"the hub refused the token {os.environ['HF_TOKEN']} of {os.environ['HOME']}/token")

    if _only_rank_1_of_several():
        rank.load = broken


def halt_in_a_phase():
    """Rank 0 of the first launch that comes there: PHASE is "NUMBER OF RANKS:PHASE", HALT a named pipe.

    It says there who it is, and goes on when it gets SIGUSR2.
    """
    from gpt_parallel.engine import pipe as events

    def halting(self, phase):
        enter(self, phase)
        halt = Path(os.environ[HALT])
        if os.environ["RANK"] == "0" and os.environ[PHASE] == f"{os.environ['WORLD_SIZE']}:{phase}" and halt.exists():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
            with halt.open("w") as pipe:
                halt.unlink()
                pipe.write(f"{os.getpid()}\n")
            signal.sigwait({signal.SIGUSR2})

    enter = events.StatusPipe.enter
    events.StatusPipe.enter = halting


def deliver_wrong_sums():
    from gpt_parallel.engine.comm import collectives

    all_reduce = collectives.Collectives.all_reduce
    collectives.Collectives.all_reduce = lambda self, tensor: all_reduce(self, tensor) + 1


# What follows is wrong on every rank of every layout alike, so that only another implementation can tell.


def decode_one_position_late():
    from gpt_parallel.engine.model.gpt2 import GPT2

    def late(self, tokens, step):
        if step.decode:
            moved = {"position": None if step.position is None else step.position + 1}
            moved["positions"] = None if step.positions is None else step.positions + 1
            step = step._replace(**moved)
        return embed(self, tokens, step)

    embed = GPT2.embed
    GPT2.embed = late


def decode_without_the_first_key():
    from gpt_parallel.engine.model import gpt2

    def fewer(q, k, v, *, in_prefill, mask=None, scale=None):
        if not in_prefill:
            k, v, mask = k[:, :, 1:], v[:, :, 1:], None if mask is None else mask[..., 1:]
        return attend(q, k, v, in_prefill=in_prefill, mask=mask, scale=scale)

    attend = gpt2.attend
    gpt2.attend = fewer


def normalise_with_ten_epsilon():
    from gpt_parallel.engine.model.layers import LayerNorm as Norm

    def ten_times(self, width, epsilon, dtype, device):
        make(self, width, 10 * epsilon, dtype, device)

    make = Norm.__init__
    Norm.__init__ = ten_times


def activate_by_exact_gelu():
    from gpt_parallel.engine.model import gpt2

    gpt2.ACTIVATIONS["gelu_new"] = gpt2.ACTIVATIONS["gelu"]


def _filter_by(**changes):
    from gpt_parallel.engine.generation import sampling

    def off(scores, given, slack):
        return threshold(scores, given.model_copy(update={k: change(given) for k, change in changes.items()}), slack)

    threshold = sampling._threshold
    sampling._threshold = off


def keep_one_more_than_top_k():
    _filter_by(top_k=lambda given: given.top_k + 1)


def keep_one_fewer_than_top_k():
    _filter_by(top_k=lambda given: given.top_k - 1)


def keep_one_more_than_top_p():
    """The first token beyond the nucleus too."""
    from gpt_parallel.engine.generation import sampling

    def off(scores, given, slack):
        nucleus = threshold(scores, given, slack)
        beyond = scores.masked_fill(scores >= nucleus, -sampling._INFINITY).amax(1, keepdim=True)
        return nucleus if given.top_p == 1 else beyond

    threshold = sampling._threshold
    sampling._threshold = off


def penalise_only_the_prompt():
    from gpt_parallel.engine.generation.sampling import Sampler

    def mark(self, seen, tokens):
        if tokens.shape[1] > 1:
            remember(self, seen, tokens)

    remember = Sampler._mark
    Sampler._mark = mark


def forget_temperature():
    from gpt_parallel.engine.generation.sampling import Sampler

    def scores(self, logits, state):
        return true_scores(self, logits, state) * (self._sampling.temperature or 1)

    true_scores = Sampler._scores
    Sampler._scores = scores


def same_noise_for_all_requests():
    from gpt_parallel.engine.generation.sampling import Sampler

    def start(self, requests):
        first = [request.model_copy(update={"request_id": 0}) for request in requests]
        return begin(self, first)

    begin = Sampler.start
    Sampler.start = start


def show_environment():
    """Not an error: the environment as native code and child processes have it goes to a file named by the rank."""
    with (Path(os.environ[SHOWN]) / os.environ["RANK"]).open("wb") as file:
        subprocess.run(["env", "-0"], stdout=file, check=True)


def mutate(monkeypatch, mutant):
    """Have a test's ranks make this mistake."""
    monkeypatch.setattr("gpt_parallel.launch.local.WORKER", "tests.support.mutants")
    monkeypatch.setenv(VARIABLE, mutant.__name__)


def pytest_configure():
    import gpt_parallel.launch.local

    gpt_parallel.launch.local.WORKER = "tests.support.mutants"


def main(arguments):
    from gpt_parallel.engine.process import worker

    name = os.environ[VARIABLE]
    (globals().get(name) or getattr(family_mutants, name))()
    return worker.main(arguments)
