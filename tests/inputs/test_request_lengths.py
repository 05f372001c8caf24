"""max_length as a limit: requests generate as many tokens as the model has positions for."""

from gpt_parallel.inputs.request_lengths import fit_new_tokens
from gpt_parallel.schema.run import Request


def requests(*lengths):
    return [
        Request(request_id=index, prompt_ids=(7,) * prompt, max_new_tokens=new)
        for index, (prompt, new) in enumerate(lengths)
    ]


def test_what_fits_is_not_changed():
    whole = requests((6, 4), (1, 9))

    assert fit_new_tokens(whole, 10) == (tuple(whole), None)


def test_what_does_not_fit_is_cut_and_said():
    fitted, note = fit_new_tokens(requests((6, 8), (4, 8), (2, 8)), 10)

    assert [request.max_new_tokens for request in fitted] == [4, 6, 8]
    assert note == "max_length 8 is cut to 4 to 6 (2 of 3 requests): the model has 10 positions"
    assert fit_new_tokens(requests((6, 8)), 10)[1] == (
        "max_length 8 is cut to 4 (1 of 1 requests): the model has 10 positions"
    )


def test_a_prompt_that_leaves_no_position_is_for_the_check_to_refuse():
    whole = requests((10, 8), (11, 8))

    assert fit_new_tokens(whole, 10) == (tuple(whole), None)
