"""Which cases settings mean."""

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.cases import PlannedCase, cases_of
from gpt_parallel.inputs.settings import make_settings


def planned(**given):
    return [tuple(case) for case in cases_of(make_settings("smoke", {"device": "cpu", "num_gpus": "1,2", **given}))]


def test_cases_are_strategies_by_counts():
    assert planned(strategy="tensor_data_hybrid,pure_data_parallel") == [
        ("pure_data_parallel", 1, None),
        ("pure_data_parallel", 2, None),
        ("tensor_data_hybrid", 2, None),
    ]


def test_several_batch_sizes_give_every_case_each_of_them():
    assert planned(strategy="pure_data_parallel", batch_sizes="4,1,4") == [
        ("pure_data_parallel", 1, 1),
        ("pure_data_parallel", 2, 1),
        ("pure_data_parallel", 1, 4),
        ("pure_data_parallel", 2, 4),
    ]


def test_degrees_are_one_case():
    assert planned(num_gpus="4", tensor_parallel_size="2") == [("custom", 4, None)]
    assert planned(num_gpus=None, tensor_parallel_size="2", batch_sizes="8") == [("custom", 2, 8)]


def test_ids_have_a_batch_size_only_where_it_was_asked_for():
    assert PlannedCase("pure_data_parallel", 2).id == "pure_data_parallel-2gpu"
    assert PlannedCase("pure_data_parallel", 2, 16).id == "pure_data_parallel-2gpu-b16"


def test_a_strategy_that_does_not_exist_is_refused():
    with pytest.raises(SpecError, match="unknown strategy 'tensor'; allowed: pure"):
        planned(strategy="tensor")


@pytest.mark.parametrize("sizes", ["2,x", "0", "", "1,,2", "-1", "1000001", "²"])
def test_batch_sizes_are_numbers_with_commas_between_them(sizes):
    with pytest.raises(SpecError, match="comma-separated batch sizes from 1 to 1000000, such as 1,4,16"):
        planned(batch_sizes=sizes)
