"""What the judge makes of tokens and the logits before them."""

import pytest
import torch

from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.judge import scoring
from gpt_parallel.judge.scoring import score
from gpt_parallel.schema.run import Request, SamplingSpec
from tests.engine.generation.test_sampling import SHAPE, VOCABULARY, Alone

PROMPT = (3, 5)
REQUEST = Request(request_id=4, prompt_ids=PROMPT, max_new_tokens=3)
TOLERANCE = 1e-3


def logits_of(*rows):
    """[N, V] with the given {id: logit}, zero elsewhere."""
    logits = torch.zeros(len(rows), VOCABULARY)
    for row, given in zip(logits, rows, strict=True):
        for token, value in given.items():
            row[token] = value
    return logits


def judge(logits, tokens, **sampling):
    return score(logits, REQUEST, tokens, SamplingSpec(**sampling), TOLERANCE)


def test_greedy_tokens_are_measured_against_the_best():
    scored = judge(logits_of({7: 2.0}, {7: 2.0, 8: 1.5}), (7, 8))

    assert scored.request_id == 4
    assert scored.margins == pytest.approx((0.0, 0.5), abs=1e-5)
    logits = logits_of({7: 2.0, 8: 1.5})
    assert scored.logprobs[1] == pytest.approx(logits.log_softmax(1)[0, 8].item(), abs=1e-6)
    assert scored.logit_scales[1] == pytest.approx((2.0 - logits.mean() + 2.0 / 3).item(), abs=1e-6)


def test_prompt_and_earlier_tokens_are_penalised():
    """A token of the prompt or an earlier one is worth half."""
    rows = logits_of({5: 3.0, 7: 2.0}, {7: 3.0, 8: 2.0}, {8: 3.0, 9: 2.0})

    assert judge(rows, (7, 8, 9), repetition_penalty=2.0).margins == (0.0, 0.0, 0.0)
    assert judge(rows, (5, 7, 8), repetition_penalty=2.0).margins == pytest.approx((0.5, 0.0, 0.0), abs=1e-5)
    assert judge(rows, (7, 7, 8), repetition_penalty=2.0).margins == pytest.approx((0.0, 0.5, 0.0), abs=1e-5)


def test_a_first_id_that_fills_short_rows_is_penalised_once():
    rows = logits_of(*[{3: 5.0, 7: 2.0}] * 3)

    assert judge(rows, (3, 3, 3), repetition_penalty=2.0).margins == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("sampling", "inside", "outside"),
    [
        ({"top_k": 2}, (7, 8), (9, 30)),
        ({"top_p": 0.75}, (7, 8), (9, 30)),
        ({"top_k": 3, "top_p": 0.5}, (7,), (8, 9)),
        ({"top_k": 100}, (7, 30), ()),
    ],
)
def test_tokens_outside_the_filters_are_not_allowed(sampling, inside, outside):
    """Probabilities of 7, 8 and 9 are about 0.59, 0.36 and 0.05; at this temperature the others have none."""
    rows = logits_of({7: 1.1, 8: 1.05, 9: 0.85})

    for token in inside:
        assert judge(rows, (token,), temperature=0.1, **sampling).margins[0] is not None
    for token in outside:
        assert judge(rows, (token,), temperature=0.1, **sampling).margins == (None,)


def margins_of_two(rows, top_k):
    """Of 7 and of 8, for requests of many ids and so with all kinds of noise."""
    sampling = SamplingSpec(temperature=1.0, top_k=top_k)
    for request_id in range(40):
        request = REQUEST.model_copy(update={"request_id": request_id})
        yield tuple(score(rows, request, (token,), sampling, TOLERANCE).margins[0] for token in (7, 8))


@pytest.mark.parametrize("gap", [0.0, 1e-4])
def test_a_token_at_the_edge_is_allowed_and_not_asked_for(gap):
    """Another run's rounding may have had the second and the third the other way round."""
    rows = logits_of({7: 1.0, 8: 0.5 + gap, 9: 0.5})

    margins = list(margins_of_two(rows, top_k=2))

    assert {seven for seven, _ in margins} == {0.0}
    assert None not in {eight for _, eight in margins}
    assert judge(rows, (9,), temperature=1.0, top_k=2).margins[0] is not None


def test_ties_that_only_one_run_has_are_allowed_for():
    """In bfloat16 8 and 9 may tie: top-k 2 then keeps three, of which 7 has less than half of the probability."""
    two = logits_of({7: 1.05, 8: 1.0, 9: 0.9})
    assert judge(two, (8,), temperature=0.1, top_k=2, top_p=0.5).margins == (None,), "7 has 0.62 of what is kept"
    three = logits_of({7: 1.05, 8: 1.0, 9: 1.0 - 1e-4})
    assert judge(three, (8,), temperature=0.1, top_k=2, top_p=0.5).margins[0] is not None, "7 may have 0.45"


def test_a_best_token_that_may_be_the_second_in_another_run_is_not_asked_for():
    """With top-k 1 whichever of the two is kept is chosen, whatever the noise."""
    rows = logits_of({7: 1.0, 8: 1.0 - 1e-4})

    assert set(margins_of_two(rows, top_k=1)) == {(0.0, 0.0)}


def test_a_token_well_inside_the_filters_is_asked_for():
    """The second of two that are kept, where its noise makes it the best: who keeps one fewer would not choose it."""
    margins = list(margins_of_two(logits_of({7: 1.0, 8: 0.9}), top_k=2))

    assert all(min(pair) == 0.0 for pair in margins)
    assert any(seven > 0.1 for seven, _ in margins)
    assert any(eight > 0.1 for _, eight in margins)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSpec(repetition_penalty=1.3),
        SamplingSpec(temperature=0.7, seed=2),
        SamplingSpec(temperature=0.9, top_k=7, seed=3),
        SamplingSpec(temperature=0.9, top_p=0.6, repetition_penalty=1.2, seed=4),
    ],
    ids=str,
)
def test_both_judges_think_the_same(seed, sampling):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, (6,), generator=generator)

    ours = score(logits, REQUEST, tokens.tolist(), sampling, TOLERANCE)
    sampler = Sampler(sampling, SHAPE, range(VOCABULARY), Alone(), 1, torch.device("cpu"))
    theirs = sampler.judge(logits, REQUEST, tokens, TOLERANCE)

    engine = [None if margin == float("inf") else margin for margin in theirs.margins.tolist()]
    assert [m is None for m in ours.margins] == [m is None for m in engine]
    assert [m or 0.0 for m in ours.margins] == pytest.approx([m or 0.0 for m in engine], abs=1e-5)
    assert ours.scales == pytest.approx(theirs.scales.tolist(), rel=1e-5)
    assert ours.logprobs == pytest.approx(theirs.logprobs.tolist(), rel=1e-5)
    assert ours.logit_scales == pytest.approx(theirs.logit_scales.tolist(), rel=1e-5)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.3}], ids=str)
def test_long_generations_are_scored_in_pieces(monkeypatch, sampling):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(17, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, (17,), generator=generator).tolist()
    at_once = judge(logits, tokens, **sampling)

    monkeypatch.setattr(scoring, "_AT_ONCE", 5)

    assert judge(logits, tokens, **sampling) == at_once
    assert len(at_once.margins) == 17
