import pytest

from gpt_parallel.report.tables import four_digits, render_table, text_table
from tests.support.factories import summary


def test_speed_up_is_over_the_same_workload():
    other = {"workload_sha256": "cd" * 32, "workload": "the other work", "mesh": "x"}
    cases = [summary(), summary((30.0,), num_gpus=2, **other), summary((20.0,), **other)]

    text = render_table(cases)

    assert [line.split()[4] for line in text.splitlines() if "pure_data" in line] == ["1.00×", "1.50×", "1.00×"]
    assert "8 requests" in text
    assert "the other work" in text, "a caption for each workload"


def test_large_numbers_have_no_exponent():
    assert [four_digits(value) for value in (123456.7, 1234.6, 12.3456, 0.0123456)] == [
        *("123,457", "1,235", "12.35", "0.01235")
    ]


def test_a_heading_may_have_lines():
    lines = text_table(["case", "peak\nMiB"], [["a", "1"], ["bcd", "200"]], is_narrow=True).splitlines()

    assert [line.rstrip() for line in lines] == ["      peak", "case   MiB", "──────────", "a        1", "bcd    200"]


@pytest.mark.parametrize(("mark", "name"), [("*", "oversubscribed"), ("†", "degenerate"), ("§", "shared")])
def test_what_figures_do_not_hold_for_is_marked(mark, name):
    text = render_table([summary(), summary(num_gpus=2, **{name: True})])

    assert f" 2{mark} " in text
    assert f"\n{mark} {name}: " in text
    assert mark not in render_table([summary()])


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"attention_prefill": "flash", "attention_decode": "cudnn"}, "--gpt-attention flash repeats"),
        ({"attention_decode": "flash", "backend": "nccl", "tp": 2}, "NCCL_ALGO=^NVLS disables it"),
        ({}, "docs/design.md lists what may not repeat"),
    ],
)
def test_what_does_not_repeat_is_marked_with_what_does(changes, remedy):
    text = render_table([summary(), summary(num_gpus=2, verified="tie", repeatable=False, **changes)])

    assert "   tie‡\n" in text
    assert "\n‡ timed rounds chose other tokens" in text
    assert remedy in text
    assert "‡" not in render_table([summary(repeatable=True)])


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({"judge": "transformers 5.24.0"}, "verified against one device, proved by transformers 5.24.0"),
        ({"judge": "engine"}, "verified against one device, not proved independently (judge: engine)"),
        ({"attention_prefill": "flash", "attention_decode": "math"}, "attention: flash in prefill, math in decode"),
        ({"attention_decode": "math"}, "attention: – in prefill, math in decode"),
    ],
)
def test_who_judged_and_which_kernels_attended_are_told(changes, caption):
    assert caption in render_table([summary(**changes)]).splitlines()
    assert not any(word in render_table([summary()]) for word in ("against one device", "attention"))
