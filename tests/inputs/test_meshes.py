"""Which mesh a case has: its strategy's rule, the degrees given beside the strategy, or degrees alone."""

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.cases import cases_of
from gpt_parallel.inputs.meshes import CUSTOM, chosen_mesh
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.layout import strategies
from gpt_parallel.layout.strategies import STRATEGIES, register_strategy
from gpt_parallel.schema.run import MeshSpec


def settings_of(**degrees):
    return make_settings("smoke", {f"{name}_parallel_size": value for name, value in degrees.items()})


def mesh(strategy, num_gpus, **degrees):
    return str(chosen_mesh(settings_of(**degrees), strategy, num_gpus))


def test_degrees_alone_must_multiply_to_the_devices():
    assert mesh(CUSTOM, None, tensor=2, pipeline=2, data=2) == "pp2·dp2·tp2"
    assert mesh(CUSTOM, None, tensor=3) == "tp3"
    assert mesh(CUSTOM, 8, tensor=2, pipeline=2) == "pp2·dp2·tp2"
    with pytest.raises(SpecError, match="= 3 devices, but num_gpus is 4; the product must be 4"):
        mesh(CUSTOM, 4, tensor=3)
    with pytest.raises(
        SpecError, match="2 × pipeline_parallel_size 1 × data_parallel_size 2 = 4 devices, but num_gpus is 8"
    ):
        mesh(CUSTOM, 8, tensor=2, data=2)


@pytest.mark.parametrize(
    ("strategy", "num_gpus", "degrees", "expected"),
    [
        ("tensor_data_hybrid", 4, {"tensor": 2, "data": 2}, "dp2·tp2"),
        ("pipeline_data_hybrid", 4, {"pipeline": 2, "data": 2}, "pp2·dp2"),
        ("full_model_parallel", 4, {"tensor": 2, "pipeline": 2}, "pp2·tp2"),
        ("full_model_parallel", 4, {"tensor": 4}, "tp4"),
        ("full_model_parallel", 4, {"pipeline": 4}, "pp4"),
        ("full_model_parallel", 8, {"tensor": 4}, "pp2·tp4"),
        ("full_model_parallel", None, {"tensor": 4}, "tp4"),
        ("tensor_data_hybrid", 8, {"tensor": 4}, "dp2·tp4"),
        ("tensor_data_hybrid", 8, {"data": 2}, "dp2·tp4"),
        ("pipeline_data_hybrid", 6, {"pipeline": 3}, "pp3·dp2"),
        ("pure_data_parallel", 4, {"data": 4}, "dp4"),
        ("pure_data_parallel", 4, {"tensor": 1}, "dp4"),
        ("full_model_parallel", 1, {"tensor": 1}, "1"),
    ],
)
def test_degrees_beside_a_strategy_choose_its_mesh(strategy, num_gpus, degrees, expected):
    assert mesh(strategy, num_gpus, **degrees) == expected


@pytest.mark.parametrize(
    ("strategy", "degrees", "kind"),
    [
        ("pure_data_parallel", {"tensor": 2}, "pure_data_parallel is data parallel; tensor_parallel_size 2"),
        ("tensor_data_hybrid", {"pipeline": 2}, "tensor and data parallel, with tensor_parallel_size at least 2"),
        ("tensor_data_hybrid", {"data": 4}, "tensor and data parallel, with tensor_parallel_size at least 2"),
        ("pipeline_data_hybrid", {"tensor": 2}, "pipeline and data parallel, with pipeline_parallel_size at least 2"),
        ("full_model_parallel", {"data": 2}, "tensor and pipeline parallel, with tensor_parallel_size or pipeline_par"),
        ("full_model_parallel", {"tensor": 3}, "= 3 devices, but num_gpus is 4"),
    ],
)
def test_degrees_of_another_kind_are_refused_with_the_strategy_s_kind(strategy, degrees, kind):
    with pytest.raises(SpecError, match=kind):
        mesh(strategy, 4, **degrees)


def test_the_rules_own_meshes_are_of_their_strategies_kind():
    for strategy in STRATEGIES.values():
        assert all(strategy.is_of_kind(found) for n in range(1, 17) if (found := strategy.rule(n)))


def test_one_device_has_one_mesh_whatever_the_strategy():
    assert {mesh(name, 1) for name in STRATEGIES} == {"1"}
    with pytest.raises(SpecError, match="full_model_parallel does not exist on 3 device"):
        mesh("full_model_parallel", 3)
    with pytest.raises(SpecError, match="unknown strategy 'nosuch'"):
        mesh("nosuch", 1)


def test_several_strategies_and_counts_take_the_degrees():
    chosen = {"strategy": "tensor_data_hybrid,full_model_parallel", "num_gpus": "4,8", "tensor_parallel_size": 4}

    assert [tuple(case[:2]) for case in cases_of(make_settings("smoke", chosen))] == [
        ("tensor_data_hybrid", 4),
        ("full_model_parallel", 4),
        ("tensor_data_hybrid", 8),
        ("full_model_parallel", 8),
    ]


def test_a_strategy_of_one_s_own_takes_any_degrees(monkeypatch):
    monkeypatch.setattr(strategies, "STRATEGIES", dict(STRATEGIES))
    register_strategy("mine", lambda n: MeshSpec(pp=n))
    monkeypatch.setattr("gpt_parallel.inputs.meshes.STRATEGIES", strategies.STRATEGIES)

    assert mesh("mine", 8, tensor=2, pipeline=2) == "pp2·dp2·tp2"
