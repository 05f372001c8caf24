import pytest

from gpt_parallel.result import TokenScore
from gpt_parallel.verify import verify
from tests.factories import rank_report, round_report, token_record


def judge(own, expected, margins=None, dtype="float32", rounds=()):
    """Verify one request; `margins` answer the reference's teacher-forced scoring."""
    asked = {}

    def score(tokens):
        asked.update(tokens)
        return [TokenScore(request_id=0, margins=margins, logit_scales=tuple(2.0 for _ in margins))]

    verification = verify([rank_report(records=(own,), rounds=rounds)], {0: expected}, dtype, score)
    assert bool(asked) == (margins is not None)
    return verification


def test_equal_tokens_are_exact():
    verification = judge(token_record(), token_record())

    assert verification.status == "exact"
    assert verification.passed
    assert verification.tokens_compared == 3


def test_equal_tokens_with_other_probabilities_are_a_mismatch():
    verification = judge(token_record(logprobs=(-1.0, -1.0, -1.001)), token_record())

    assert verification.status == "mismatch"
    assert "new token 2: log-probability -1.001, reference -1" in verification.problems[0]


def test_rounding_of_the_number_type_is_allowed():
    own = token_record(logprobs=(-1.0, -1.0, -1.05))

    assert judge(own, token_record(), dtype="bfloat16").status == "exact"
    assert judge(own, token_record(), dtype="bfloat16").max_logprob_difference == pytest.approx(0.05)
    assert judge(own, token_record(), dtype="float16").status == "mismatch"


def test_other_tokens_that_score_as_well_are_a_tie():
    verification = judge(token_record(tokens=(1, 9, 9)), token_record(), margins=(0.0, 1e-5, 0.0))

    assert verification.status == "tie"
    assert verification.passed
    (tie,) = verification.ties
    assert (tie.request_id, tie.position, tie.margin) == (0, 1, 1e-5)


@pytest.mark.parametrize("margins", [(0.0, 1e-3, 0.0), (0.0, 1e-6, 0.5), (0.0, None, 0.0)])
def test_one_token_that_scores_worse_is_a_mismatch(margins):
    verification = judge(token_record(tokens=(1, 9, 9)), token_record(), margins=margins)

    assert verification.status == "mismatch"
    assert not verification.passed
    assert "first difference at 1" in verification.problems[0]


def test_a_round_that_changed_is_a_mismatch_whatever_its_tokens():
    rounds = (round_report(1.0), round_report(1.0, changed=(0,)))

    verification = judge(token_record(), token_record(), rounds=rounds)

    assert verification.status == "mismatch"
    assert "round 2: rank 0 did not reproduce the verified tokens of requests [0]" in verification.problems


def test_a_missing_request_is_a_mismatch():
    verification = verify([rank_report()], {0: token_record()}, "float32", lambda tokens: [])

    assert verification.status == "mismatch"
    assert "requests [0] are not in both" in verification.problems[0]
