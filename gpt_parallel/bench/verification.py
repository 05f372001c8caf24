"""Compares a run with its single-device reference (exact, tie or mismatch), and that with its judge's scores.

Tokens equal: `exact`. If tokens of a request differ, the judge scores them teacher-forced, and each must be within
tolerance of the best: `tie`. In both cases the run's log-probabilities must equal the reference's within tolerance, and
their root mean square difference must be within a stricter limit, which rounding meets and a small error throughout
does not. A timed round with other tokens than the recorded pass is scored in the same way. All else is `mismatch`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import fsum, sqrt
from typing import NamedTuple

from gpt_parallel.schema.result import RankReport, Tie, TokenRecord, TokenScore, Verification
from gpt_parallel.schema.run import Dtype, RequestTokens

# Relative to a step's logit scale (see `TokenRecord`). In models of 4 to 24 layers, layouts differed from one
# device by at most 1.5e-6 (root mean square 5e-7) in float32 and 1.3e-2 (5e-3) in bfloat16, or 3.1e-2 (7.4e-3) in
# bfloat16 if all logits share a large offset.
TOLERANCES: Mapping[Dtype, float] = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
_MEAN_SQUARE_SHARE = 1 / 4

Score = Callable[[Sequence[RequestTokens]], Sequence[TokenScore]]
Records = Mapping[int, TokenRecord]


def records_of(ranks: Iterable[RankReport]) -> dict[int, TokenRecord]:
    """Every request's record, from the ranks that report for their replica."""
    return {record.request_id: record for rank in ranks for record in rank.records}


def tokens_of(records: Records) -> list[RequestTokens]:
    return [RequestTokens(request_id=key, tokens=records[key].tokens) for key in sorted(records)]


def verify(ranks: Sequence[RankReport], reference: Records, dtype: Dtype, score: Score, judge: str) -> Verification:
    """Compare a run's recorded pass, and the tokens of its rounds, with the reference's records.

    Where a run's records have no log-probabilities, as other engines' have none, only tokens are compared. `score` is
    asked for `judge`'s teacher-forced scores only where tokens differ.
    """
    tolerance = TOLERANCES[dtype]
    run, changed = records_of(ranks), _changed_in_rounds(ranks)
    problems = [*_request_problems(ranks, reference), *_shard_problems(ranks)]
    ties: list[Tie] = []
    differences: list[_Difference] = []
    if not problems:
        differing = _differing(tokens_of(run), reference)
        asked = list(dict.fromkeys([*differing, *_differing(list(changed), reference)]))
        scores = dict(zip(asked, score(asked) if asked else (), strict=True))
        rounds = [(own, where) for own, places in changed.items() for where in places if own in scores]
        where_found = [*((own, _RECORDED) for own in differing), *rounds]
        ties, problems = _sort([_judge(own, reference, scores[own], tolerance, where) for own, where in where_found])
        of_differing = {own.request_id: scores[own] for own in differing}
        differences = [
            d for key in sorted(run) for d in _logprob_differences(run[key], of_differing.get(key, reference[key]))
        ]
        problems += _logprob_problems(differences, tolerance)
    has_rounds = any(rank.rounds for rank in ranks)
    return Verification(
        status="mismatch" if problems else "tie" if ties or changed else "exact",
        judge=judge,
        repeatable=not changed if has_rounds else None,
        tokens_compared=sum(len(run[key].tokens) for key in run if key in reference),
        max_logprob_difference=_largest(differences, run),
        ties=tuple(ties),
        problems=tuple(problems),
    )


def prove(reference: Records, scores: Sequence[TokenScore], dtype: Dtype) -> list[str]:
    """The problems of the reference itself, from an independent judge's scores of its tokens; empty if there are none.

    Every token must be the best given those before it, and have the judge's log-probability, within tolerance.
    """
    tolerance = TOLERANCES[dtype]
    verdicts = [
        _judge(own, reference, scored, tolerance, _RECORDED)
        for own, scored in zip(tokens_of(reference), scores, strict=True)
    ]
    differences = [d for scored in scores for d in _logprob_differences(reference[scored.request_id], scored)]
    return [*_sort(verdicts)[1], *_logprob_problems(differences, tolerance)]


def _sort(verdicts: Sequence[Tie | str]) -> tuple[list[Tie], list[str]]:
    """Separate ties from problems."""
    return [v for v in verdicts if isinstance(v, Tie)], [v for v in verdicts if isinstance(v, str)]


class _Where(NamedTuple):
    """The recorded pass, or a timed round (from 1) of a rank."""

    round: int | None = None
    rank: int | None = None

    def __str__(self) -> str:
        return "" if self.round is None else f"round {self.round}, rank {self.rank}: "


_RECORDED = _Where()


def _differing(sequences: Sequence[RequestTokens], reference: Records) -> list[RequestTokens]:
    return [own for own in sequences if own.tokens != reference[own.request_id].tokens]


def _changed_in_rounds(ranks: Sequence[RankReport]) -> dict[RequestTokens, list[_Where]]:
    """The tokens of rounds that differ from the recorded ones, with the first rank that reports them for each round."""
    changed: dict[RequestTokens, dict[int, _Where]] = {}
    for rank in ranks:
        for number, timed in enumerate(rank.rounds, start=1):
            for own in timed.changed:
                changed.setdefault(own, {}).setdefault(number, _Where(number, rank.place.rank))
    return {own: list(places.values()) for own, places in changed.items()}


def _request_problems(ranks: Sequence[RankReport], reference: Records) -> list[str]:
    told = [record.request_id for rank in ranks for record in rank.records]
    problems = []
    if set(told) != set(reference):
        missing = sorted(set(reference) ^ set(told))
        problems.append(f"requests only in the run or only in the reference: {missing}")
    if twice := sorted({key for key in told if told.count(key) > 1}):
        problems.append(f"requests {twice} were generated by more than one replica")
    problems += _length_problems({key: len(record.tokens) for key, record in records_of(ranks).items()}, reference)
    problems += _length_problems({own.request_id: len(own.tokens) for own in _changed_in_rounds(ranks)}, reference)
    if unknown := sorted({own.request_id for own in _changed_in_rounds(ranks)} - set(reference)):
        problems.append(f"requests {unknown} of timed rounds are not in the reference")
    return problems


def _length_problems(lengths: Mapping[int, int], reference: Records) -> list[str]:
    return [
        f"request {key}: {length} new tokens, the reference has {len(reference[key].tokens)}"
        for key, length in sorted(lengths.items())
        if key in reference and length != len(reference[key].tokens)
    ]


def _shard_problems(ranks: Sequence[RankReport]) -> list[str]:
    """Disagreements between shards of a replica, which exchange their choices and so must always agree."""
    last = max((rank.place.stage for rank in ranks), default=0)
    speakers: dict[int, RankReport] = {}
    problems = []
    for rank in (rank for rank in ranks if rank.place.stage == last):
        speaker = speakers.setdefault(rank.place.replica, rank)
        for number, pair in enumerate(zip(speaker.rounds, rank.rounds, strict=True), start=1):
            if pair[0].changed != pair[1].changed:
                problems.append(
                    f"round {number}: ranks {speaker.place.rank} and {rank.place.rank} chose different tokens"
                )
    return problems


class _Difference(NamedTuple):
    """The log-probability of one token in the run and in the reference."""

    request_id: int
    position: int
    own: float
    expected: float
    scale: float

    @property
    def relative(self) -> float:
        return abs(self.own - self.expected) / self.scale


def _logprob_differences(run: TokenRecord, expected: TokenRecord | TokenScore) -> Iterator[_Difference]:
    """The differences of each token; none if the run's log-probabilities are not known."""
    if run.logprobs is None:
        return iter(())
    assert expected.logprobs is not None
    assert expected.logit_scales is not None
    rows = zip(run.logprobs, expected.logprobs, expected.logit_scales, strict=True)
    return (_Difference(run.request_id, position, *row) for position, row in enumerate(rows))


def _largest(differences: Sequence[_Difference], run: Records) -> float | None:
    if not differences and any(record.logprobs is None for record in run.values()):
        return None
    return max((abs(d.own - d.expected) for d in differences), default=0.0)


def _logprob_problems(differences: Sequence[_Difference], tolerance: float) -> list[str]:
    """Log-probabilities outside the limits. Each is a logit minus a log-sum-exp: both may be off by the tolerance."""
    problems = {
        d.request_id: f"request {d.request_id}, new token {d.position}: log-probability {d.own:.6g}, "
        f"reference {d.expected:.6g}"
        for d in reversed(differences)
        if not d.relative <= 2 * tolerance
    }
    if differences and not problems:
        mean = sqrt(fsum(d.relative**2 for d in differences) / len(differences))
        if not mean <= tolerance * _MEAN_SQUARE_SHARE:
            return [
                f"log-probabilities of all {len(differences)} tokens are off by {mean:.3g} of their logits' scale "
                f"(root mean square); rounding explains {tolerance * _MEAN_SQUARE_SHARE:.3g}"
            ]
    return [problems[key] for key in sorted(problems)]


def _judge(own: RequestTokens, reference: Records, scored: TokenScore, tolerance: float, where: _Where) -> Tie | str:
    """A tie, or the problem of the first token that scores too low."""
    expected = reference[own.request_id].tokens
    first = next((i for i, pair in enumerate(zip(own.tokens, expected, strict=True)) if pair[0] != pair[1]), None)
    for position, (margin, scale) in enumerate(zip(scored.margins, scored.scales, strict=True)):
        if margin is None or not margin <= tolerance * scale:
            told = f"scores {margin:.6g} below the best" if margin is not None else "is outside what sampling allows"
            problem = f"{where}request {own.request_id}, new token {position}: got {own.tokens[position]}, which {told}"
            if first is None:
                return problem
            return f"{problem} (reference: {expected[position]}; first difference at {first})"
    position = first or 0
    return Tie(request_id=own.request_id, position=position, margin=scored.margins[position] or 0.0, round=where.round)
