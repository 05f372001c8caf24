"""Holds a run against its single-device reference: exact, tie or mismatch.

Tokens equal, and their log-probabilities within tolerance: `exact`. A request whose tokens differ is read
teacher-forced by the reference, and every one of its tokens must score within tolerance of the best: `tie`. All else
is `mismatch`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from gpt_parallel.result import RankReport, Tie, TokenRecord, TokenScore, Verification
from gpt_parallel.spec import Dtype

# Relative to the largest |logit| of a step (at least 1). Half a unit in the last place is 6e-8, 4.9e-4 and 3.9e-3;
# errors grow through the layers, and are some ten times that at the logits of a deep model.
TOLERANCES: Mapping[Dtype, float] = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}

Score = Callable[[Mapping[int, tuple[int, ...]]], Sequence[TokenScore]]
Records = Mapping[int, TokenRecord]


def records_of(ranks: Iterable[RankReport]) -> dict[int, TokenRecord]:
    """Every request's record, from the ranks that speak for their replica."""
    return {record.request_id: record for rank in ranks for record in rank.records}


def verify(ranks: Sequence[RankReport], reference: Records, dtype: Dtype, score: Score) -> Verification:
    """Compare a run's recorded pass, and its rounds' agreement with it, with the reference's records.

    `score` is asked for teacher-forced scores by the reference only where tokens differ.
    """
    tolerance = TOLERANCES[dtype]
    run = records_of(ranks)
    problems = _round_problems(ranks)
    if set(run) != set(reference):
        missing = sorted(set(reference) ^ set(run))
        problems.append(f"requests {missing} are not in both the run and its reference")
    common = [key for key in sorted(reference) if key in run]
    differing = {key: run[key].tokens for key in common if run[key].tokens != reference[key].tokens}
    equal = [key for key in common if key not in differing]
    worst = 0.0
    for key in equal:
        difference, problem = _compare_logprobs(run[key], reference[key], tolerance)
        worst = max(worst, difference)
        if problem:
            problems.append(problem)
    ties: list[Tie] = []
    if differing and not problems:
        ties, problems = _judge_differences(differing, reference, score(differing), tolerance)
    return Verification(
        status="mismatch" if problems else "tie" if ties else "exact",
        tokens_compared=sum(len(run[key].tokens) for key in common),
        max_logprob_difference=worst,
        ties=tuple(ties),
        problems=tuple(problems),
    )


def _round_problems(ranks: Sequence[RankReport]) -> list[str]:
    return [
        f"round {number}: rank {rank.rank} did not reproduce the verified tokens of requests "
        f"{list(timed.changed_requests)}"
        for rank in ranks
        for number, timed in enumerate(rank.rounds, start=1)
        if timed.changed_requests
    ]


def _compare_logprobs(run: TokenRecord, reference: TokenRecord, tolerance: float) -> tuple[float, str | None]:
    """The largest difference, and a sentence if it (or a NaN) is more than rounding explains.

    A log-probability is a logit minus a log-sum-exp: both may be off by the tolerance.
    """
    worst = 0.0
    pairs = zip(run.logprobs, reference.logprobs, reference.logit_scales, strict=True)
    for position, (own, expected, scale) in enumerate(pairs):
        difference = abs(own - expected)
        worst = max(worst, difference)
        if not difference <= 2 * tolerance * max(1.0, scale):
            return worst, (
                f"request {run.request_id}, new token {position}: log-probability {own:.6g}, reference {expected:.6g}"
            )
    return worst, None


def _judge_differences(
    differing: Mapping[int, tuple[int, ...]], reference: Records, scores: Sequence[TokenScore], tolerance: float
) -> tuple[list[Tie], list[str]]:
    ties, problems = [], []
    for score in scores:
        tokens, expected = differing[score.request_id], reference[score.request_id].tokens
        first = next(index for index, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1])
        for position, (margin, scale) in enumerate(zip(score.margins, score.logit_scales, strict=True)):
            if margin is None or not margin <= tolerance * max(1.0, scale):
                problems.append(
                    f"request {score.request_id}, new token {position}: got {tokens[position]}, which scores "
                    + (f"{margin:.6g} below the best" if margin is not None else "outside what sampling allows")
                    + f" (reference: {expected[position]}; first difference at {first})"
                )
                break
        else:
            ties.append(Tie(request_id=score.request_id, position=first, margin=score.margins[first] or 0.0))
    return ties, problems
