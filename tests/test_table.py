import pytest

from gpt_parallel.table import four_digits, render_table, text_table
from tests.factories import summary


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
