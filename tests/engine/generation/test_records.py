"""What is kept of a pass: nothing that is not a number, and the tokens that changed."""

import pytest
import torch

from gpt_parallel.engine.generation.loop import BatchEvent
from gpt_parallel.engine.generation.records import changed_tokens, check_own_logits, token_records
from gpt_parallel.engine.generation.sampling import SampledTokens
from gpt_parallel.engine.pipe import LostPeerError
from gpt_parallel.layout.batches import Batch
from gpt_parallel.schema.run import Request, RequestTokens
from tests.support.factories import token_record

NAN, INF = float("nan"), float("inf")


def one_batch(own, logprobs=None):
    """A batch's events from rows of numbers, a row a request; requests are 3, 4, … and want 3, 2, 1 … tokens."""
    own = torch.tensor(own)
    requests = [Request(request_id=3 + i, prompt_ids=(1,), max_new_tokens=3 - i) for i in range(len(own))]
    logprobs = -torch.ones_like(own) if logprobs is None else torch.tensor(logprobs)
    tokens = torch.arange(own.numel()).view(own.shape)
    batch = Batch("0", tuple(requests))
    steps = range(own.shape[1])
    return [
        BatchEvent(batch, s, SampledTokens(tokens[:, s], own[:, s], logprobs[:, s], torch.ones(len(own))))
        for s in steps
    ]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_first_step_whose_logits_are_not_finite_is_named(bad):
    with pytest.raises(ArithmeticError, match=r"^request 4, new token 1: the logits are not finite"):
        check_own_logits(one_batch([[1.0, 1.0, bad], [1.0, bad, 1.0]]))


def test_rows_that_are_done_may_hold_anything():
    check_own_logits(one_batch([[1.0, 1.0, 1.0], [1.0, 1.0, NAN]]))


@pytest.mark.parametrize(("own", "error"), [(NAN, ArithmeticError), (1.0, LostPeerError)])
def test_who_only_heard_of_logits_that_are_not_finite_leaves_the_word_to_the_other(own, error):
    with pytest.raises(error, match="request 3, new token 2"):
        token_records(one_batch([[1.0, 1.0, own]], logprobs=[[-1.0, -1.0, NAN]]))


def test_a_round_tells_the_tokens_that_it_did_not_repeat():
    records = [token_record(7, (1, 2, 3)), token_record(5, (1, 2, 3)), token_record(6, (1, 2, 3))]

    changed = changed_tokens(records, {5: (1, 8, 3), 6: (1, 2, 3), 7: (1, 9, 9)})

    assert set(changed) == {
        RequestTokens(request_id=5, tokens=(1, 8, 3)),
        RequestTokens(request_id=7, tokens=(1, 9, 9)),
    }
    assert changed_tokens(records, {5: (1, 2, 3), 6: (1, 2, 3), 7: (1, 2, 3)}) == ()
