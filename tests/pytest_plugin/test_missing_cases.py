"""Strategies that do not exist for the device counts that were asked for."""

from tests.support.halting import benchmarks, run


def test_strategies_without_a_case_on_some_count_are_named_in_the_summary(tmp_path):
    done = run(benchmarks(tmp_path, "--gpt-num-gpus", "1,3"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    summary = done.stdout.partition("= gpt_parallel =")[2]
    assert (
        "no case on 3 devices: tensor_data_hybrid, pipeline_data_hybrid, full_model_parallel (not defined for it)\n"
        in summary
    )
    assert "on 1 device" not in summary


def test_a_strategy_without_any_case_is_a_usage_error_that_names_the_counts(tmp_path):
    done = run(benchmarks(tmp_path, "--gpt-num-gpus", "3", "--gpt-strategy", "tensor_data_hybrid"))

    assert done.returncode == 4
    assert "tensor_data_hybrid does not exist on 3 device(s); allowed: 2, 4, 6" in done.stderr


def test_a_strategy_with_cases_on_some_counts_is_no_error(tmp_path):
    done = run(
        benchmarks(tmp_path, "--collect-only", "-q", "--gpt-num-gpus", "1,2", "--gpt-strategy", "tensor_data_hybrid")
    )

    assert done.returncode == 0
    assert "test_generation[tensor_data_hybrid-2gpu]" in done.stdout
