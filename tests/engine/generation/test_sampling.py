"""Sampling: transformers' meaning, one distribution, and the same tokens however the vocabulary is cut."""

import pytest
import torch
from scipy import stats

from gpt_parallel.engine.generation.sampling import Sampler, _threshold, gumbel_noise, scale_of
from gpt_parallel.layout.shards import shard_ranges
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.run import Request, SamplingSpec

CPU = torch.device("cpu")
VOCABULARY = 61
SHAPE = Architecture(n_layer=1, n_head=4, n_embd=8, n_inner=32, vocab_size=VOCABULARY, n_positions=64)
REQUESTS = tuple(Request(request_id=i, prompt_ids=(i, i + 1, 7), max_new_tokens=4) for i in range(5))


class Alone:
    """One shard."""

    def gather(self, tensor):
        return tensor[None]


class Together:
    """All shards in this process: each gathers what the others offered at the same point."""

    def __init__(self, offers):
        self._offers = iter(offers)

    def gather(self, tensor):
        return next(self._offers)


def sampler(spec, collectives=None, vocabulary=range(VOCABULARY), tp_size=1):
    return Sampler(spec, SHAPE, vocabulary, collectives or Alone(), tp_size, CPU)


def choose_alone(spec, logits, step):
    one = sampler(spec)
    return one.choose(logits, one.start(REQUESTS), step, record=True)


def choose_sharded(spec, logits, step, tp_size, record=True):
    """Every shard's choice, run twice: once to learn what each offers, once with all the offers."""
    parts = [shard_ranges(SHAPE, tp_size, index)[3] for index in range(tp_size)]
    pieces = [logits[:, part.start : part.stop] for part in parts]
    offered = []
    for part, piece in zip(parts, pieces, strict=True):

        class Listen:
            def gather(self, tensor):
                offered.append(tensor)
                raise StopIteration

        one = sampler(spec, Listen(), part, tp_size)
        with pytest.raises(StopIteration):
            one.choose(piece, one.start(REQUESTS), step, record=record)
    together = torch.stack(offered)
    choices = []
    for part, piece in zip(parts, pieces, strict=True):
        one = sampler(spec, Together([together]), part, tp_size)
        choices.append(one.choose(piece, one.start(REQUESTS), step, record=record))
    return choices


NAN, INF = float("nan"), float("inf")
SETTINGS = [
    SamplingSpec(),
    SamplingSpec(repetition_penalty=1.5),
    SamplingSpec(temperature=0.7, seed=3),
    SamplingSpec(temperature=1.3, top_k=9, seed=4),
    SamplingSpec(temperature=1.0, top_p=0.8, repetition_penalty=1.2, seed=5),
]


@pytest.mark.parametrize("spec", SETTINGS, ids=str)
@pytest.mark.parametrize(("bad", "record"), [(NAN, True), (INF, True), (-INF, True), (NAN, False), (INF, False)])
def test_only_the_shard_whose_logits_are_not_finite_says_so(spec, bad, record):
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits[3, 50] = bad

    choices = choose_sharded(spec, logits, 0, 3, record)

    owner = [50 in shard_ranges(SHAPE, 3, shard)[3] for shard in range(3)].index(True)
    bad_rows = [(~choice.finite_check.isfinite()).nonzero().flatten().tolist() for choice in choices]
    assert bad_rows == [[3] if shard == owner else [] for shard in range(3)]


@pytest.mark.parametrize("spec", SETTINGS, ids=str)
@pytest.mark.parametrize("tp_size", [2, 3, 4])
def test_shards_choose_what_the_whole_vocabulary_chooses(spec, tp_size):
    for seed in range(8):
        logits = 3 * torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(seed))

        whole = choose_alone(spec, logits, seed)

        for choice in choose_sharded(spec, logits, seed, tp_size):
            assert torch.equal(choice.tokens, whole.tokens)
            torch.testing.assert_close(choice.logprobs, whole.logprobs)
            torch.testing.assert_close(choice.scales, whole.scales)
        expected = logits.log_softmax(1).gather(1, whole.tokens[:, None])[:, 0]
        torch.testing.assert_close(whole.logprobs, expected)


def test_the_lowest_id_wins_a_tie():
    logits = torch.zeros(5, VOCABULARY)
    logits[:, [20, 40, 60]] = 1.0

    assert choose_alone(SamplingSpec(), logits, 0).tokens.tolist() == [20] * 5
    assert choose_sharded(SamplingSpec(), logits, 0, 3)[0].tokens.tolist() == [20] * 5


@pytest.mark.parametrize("seed", range(5))
def test_filters_are_those_of_transformers(seed):
    from transformers.generation.logits_process import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = 3 * torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    prompts = torch.tensor([request.prompt_ids for request in REQUESTS])
    spec = SamplingSpec(temperature=0.7, top_k=12, top_p=0.85, repetition_penalty=1.4)
    expected = logits
    for process in (
        RepetitionPenaltyLogitsProcessor(1.4),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(12),
        TopPLogitsWarper(0.85),
    ):
        expected = process(prompts, expected)

    one = sampler(spec)
    scores = one._scores(logits, one.start(REQUESTS))
    ours = scores.masked_fill(scores < _threshold(scores, spec, 0.0), -float("inf"))

    torch.testing.assert_close(ours, expected)


def test_generated_tokens_are_penalised_too():
    spec = SamplingSpec(repetition_penalty=10.0)
    one = sampler(spec)
    state = one.start(REQUESTS)
    logits = torch.zeros(5, VOCABULARY)
    logits[:, 50], logits[:, 51] = 3.0, 2.0

    first = one.choose(logits, state, 0).tokens
    second = one.choose(logits, state, 1).tokens

    assert first.tolist() == [50] * 5
    assert second.tolist() == [51] * 5


def test_frequencies_fit_the_distribution():
    """Chi-square over 20,000 positions of one request."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 0.0])
    count = 20_000
    keys = torch.full((count,), 12345)

    noise = gumbel_noise(keys, torch.arange(count), torch.arange(len(logits)))
    drawn = (logits + noise).argmax(1).bincount(minlength=len(logits))

    assert stats.chisquare(drawn.numpy(), (logits.softmax(0) * count).numpy(), sum_check=False).pvalue > 0.001
    # Neighbouring positions and ids are not alike.
    assert abs(torch.corrcoef(torch.stack([noise[:-1, 0], noise[1:, 0]]))[0, 1]) < 0.03
    assert abs(torch.corrcoef(torch.stack([noise[:, 0], noise[:, 1]]))[0, 1]) < 0.03


def test_noise_depends_on_request_seed_and_position_but_not_on_the_row():
    spec = SamplingSpec(temperature=1.0, seed=9)
    logits = torch.zeros(5, VOCABULARY)
    there = choose_alone(spec, logits, 0).tokens
    one = sampler(spec)
    alone = [one.choose(logits[:1], one.start((r,)), 0).tokens.item() for r in reversed(REQUESTS)]

    assert alone[::-1] == there.tolist()
    assert there.tolist() != choose_alone(spec, logits, 1).tokens.tolist()
    assert there.tolist() != choose_alone(SamplingSpec(temperature=1.0, seed=10), logits, 0).tokens.tolist()


@pytest.mark.parametrize("spec", SETTINGS, ids=str)
def test_margins_of_the_sampled_tokens_are_nil_and_of_others_are_not(spec):
    """The teacher-forced judge agrees with the sampler, step by step."""
    request, count = REQUESTS[0], 12
    logits = 3 * torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(1))
    one = sampler(spec)
    state = one.start((request,))
    tokens = torch.cat([one.choose(logits[i : i + 1], state, i).tokens for i in range(count)])

    judgement = one.judge(logits, request, tokens, 2e-5)
    assert judgement.margins.abs().max() <= 1e-5
    torch.testing.assert_close(judgement.logprobs, logits.log_softmax(1).gather(1, tokens[:, None])[:, 0])

    wrong = tokens.clone()
    wrong[5] = logits[5].argmin()
    margins = one.judge(logits, request, wrong, 2e-5).margins
    assert margins[5] > 0.1
    assert margins[:5].abs().max() <= 1e-5
    if spec.filters:
        assert margins[5] == float("inf")


def test_a_token_at_the_edge_of_a_filter_is_tolerated():
    """The second and third best differ by less than the tolerance; top-k 2 may keep either."""
    spec = SamplingSpec(temperature=1.0, top_k=2, seed=1)
    logits = torch.full((1, VOCABULARY), -20.0)
    logits[0, 3], logits[0, 4], logits[0, 5] = 5.0, 5.0 - 1e-6, 5.0 - 2e-6
    one = sampler(spec)

    def margin(token):
        return one.judge(logits, REQUESTS[0], torch.tensor([token]), 2e-5).margins[0]

    assert margin(5) != float("inf")
    assert margin(6) == float("inf")


def test_a_common_offset_of_the_logits_is_hardly_an_excuse():
    """It cancels in every comparison, but for the rounding of the logits themselves."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))

    added = scale_of(logits - 600.0) - scale_of(logits)
    torch.testing.assert_close(added, torch.full((3,), 200.0), rtol=0.01, atol=0)
    torch.testing.assert_close(scale_of(10 * logits), 10 * scale_of(logits))
