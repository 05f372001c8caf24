import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.layout import strategies
from gpt_parallel.layout.strategies import cases, is_degenerate, mesh_for, register_strategy
from gpt_parallel.schema.run import MeshSpec

TABLE = {
    "pure_data_parallel": {1: "1", 2: "dp2", 4: "dp4", 8: "dp8"},
    "tensor_data_hybrid": {2: "tp2", 4: "dp2·tp2", 8: "dp4·tp2"},
    "pipeline_data_hybrid": {2: "pp2", 4: "pp2·dp2", 8: "pp2·dp4"},
    "full_model_parallel": {2: "tp2", 4: "pp2·tp2", 8: "pp4·tp2"},
}


def test_meshes_are_those_of_the_design():
    for strategy, row in TABLE.items():
        assert {n: str(mesh_for(strategy, n)) for n in row} == row


def test_the_classic_run_has_nine_cases_and_eight_devices_make_thirteen():
    assert len(cases((1, 2, 4))) == 9
    assert len(cases((1, 2, 4, 8))) == 13
    assert [name for name, n in cases((1,))] == ["pure_data_parallel"]


@pytest.mark.parametrize(
    ("strategy", "num_gpus", "message"),
    [
        ("tensor_parallel", 2, "unknown strategy 'tensor_parallel'; allowed: pure_data_parallel, tensor_data_hybrid"),
        ("tensor_data_hybrid", 1, "tensor_data_hybrid does not exist on 1 device"),
        ("full_model_parallel", 3, "full_model_parallel does not exist on 3 device"),
        ("pure_data_parallel", 0, "pure_data_parallel does not exist on 0 device"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(strategy, num_gpus, message):
    with pytest.raises(SpecError, match=message):
        mesh_for(strategy, num_gpus)


def test_full_model_parallel_on_two_devices_is_degenerate():
    assert is_degenerate("full_model_parallel", mesh_for("full_model_parallel", 2))
    assert not is_degenerate("full_model_parallel", mesh_for("full_model_parallel", 4))
    assert not is_degenerate("tensor_data_hybrid", mesh_for("tensor_data_hybrid", 2))
    assert not is_degenerate("custom", MeshSpec(tp=2)), "degrees of one's own repeat nothing"


@pytest.fixture
def own_register(monkeypatch):
    monkeypatch.setattr(strategies, "STRATEGIES", dict(strategies.STRATEGIES))


@pytest.mark.usefixtures("own_register")
def test_a_strategy_can_be_added_once():
    register_strategy("pipeline_only", lambda n: MeshSpec(pp=n) if n > 1 else None)

    assert str(mesh_for("pipeline_only", 4)) == "pp4"
    assert ("pipeline_only", 2) in cases((1, 2))
    with pytest.raises(ValueError, match="already registered"):
        register_strategy("pipeline_only", lambda n: None)
    with pytest.raises(ValueError, match="must be an identifier"):
        register_strategy("not a name", lambda n: None)


@pytest.mark.usefixtures("own_register")
def test_a_rule_of_the_wrong_size_is_refused():
    register_strategy("wrong", lambda n: MeshSpec(tp=2 * n))

    with pytest.raises(SpecError, match="wrong makes a mesh tp4 of 4 devices when asked for 2"):
        mesh_for("wrong", 2)
