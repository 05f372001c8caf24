"""YAML settings: what a file may hold, what wins over what, and how mistakes are told."""

import pytest
from typer.testing import CliRunner

from gpt_parallel.base.errors import SpecError
from gpt_parallel.cli import app
from gpt_parallel.inputs.settings import Settings, make_settings
from gpt_parallel.inputs.yaml_file import MAX_BYTES, read_config, sections, to_yaml
from tests.support.paths import ROOT

EXAMPLES = sorted((ROOT / "configs").glob("*.yaml"))

LAUGHS = "a0: &a0 [ha, ha, ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n}, ' * 9}]\n" for n in range(20))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [{f'*a{n}, ' * 9}]}}\n" for n in range(20))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems_of(path):
    with pytest.raises(SpecError) as failure:
        read_config(path)
    return failure.value.problems


def test_every_setting_has_one_section():
    """A new field of Settings belongs to the section it stands in."""
    listed = [field for fields in sections().values() for field in fields]

    assert list(sections()) == ["model", "workload", "execution", "mesh"]
    assert listed == list(Settings.model_fields)
    assert sections()["mesh"][:2] == ["strategy", "num_gpus"]
    assert "verify" in sections()["execution"]


def test_examples_are_there():
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_example_loads(path):
    file = read_config(path)

    settings = make_settings(file.preset or "smoke", {}, file.values)

    assert all(
        getattr(settings, name) == value or name in ("num_gpus", "batch_sizes") for name, value in file.values.items()
    )
    assert settings.device_counts


def test_a_file_is_over_the_preset_and_options_are_over_the_file(write):
    file = read_config(write("workload:\n  batch_size: 3\n  max_length: 5\nmesh:\n  num_gpus: 4\n"))

    settings = make_settings("smoke", {"max_length": "6", "seed": None}, file.values)

    assert (settings.batch_size, settings.max_length, settings.prompt_tokens) == (3, 6, 32)
    assert settings.num_gpus == "4"


def test_null_unsets_what_the_preset_has(write):
    file = read_config(write("workload:\n  num_samples: null\n"))

    assert make_settings("smoke", {}, file.values).num_samples is None
    assert make_settings("smoke", {}).num_samples == 8


@pytest.mark.parametrize("num_gpus", ["[4, 1]", "'1,4'", "1,4"])
def test_device_counts_may_be_a_list(write, num_gpus):
    file = read_config(write(f"mesh:\n  num_gpus: {num_gpus}\n"))

    assert make_settings("smoke", {}, file.values).device_counts == (1, 4)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_gpus": "1,2", "prompts": "mine.jsonl", "temperature": "0.3", "verify": "False", "model": "é: # x"},
        {"tensor_parallel_size": "2", "num_gpus": "2", "dtype": "bfloat16", "timeout_s": "1e3"},
    ],
)
def test_what_is_printed_gives_the_same_settings_under_any_preset(write, given):
    settings = make_settings("smoke", given)

    file = read_config(write(to_yaml(settings)))

    for preset in ("smoke", "xl"):
        assert make_settings(preset, {}, file.values) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workload:\n  batchsize: 3\n", "workload.batchsize: unknown key; did you mean 'batch_size'?"),
        ("exection:\n  dtype: float32\n", "exection: unknown key; did you mean 'execution'?"),
        ("workload:\n  dtype: float32\n", "workload.dtype: unknown key here; 'dtype' belongs in section 'execution'"),
        ("batch_size: 3\n", "batch_size: unknown key here; 'batch_size' belongs in section 'workload'"),
        ("mesh:\n  cores_per_rnk: 3\n", "mesh.cores_per_rnk: unknown key; did you mean 'execution.cores_per_rank'?"),
        ("mesh:\n  zzz: 3\n", "mesh.zzz: unknown key; allowed: strategy, num_gpus, tensor"),
        ("workload:\n  batch_size: 0\n", "batch_size = 0: must be greater than 0"),
        ("workload:\n  batch_size: null\n", "batch_size = None: must be an integer"),
        ("workload:\n  batch_size: yes\n", "workload.batch_size = true: this is not a yes-or-no setting"),
        ("workload:\n  batch_size: [3]\n", "batch_size = [3]: must be an integer"),
        ("execution:\n  timeout_s: .nan\n", "timeout_s = nan: must be"),
        ("mesh:\n  num_gpus: [1, x]\n", "num_gpus = [1, 'x']"),
        ("mesh:\n  num_gpus: true\n", "this is not a yes-or-no setting"),
        ("workload: 5\n", "workload: must hold fields such as 'prompts: …', not 5"),
        ("- model\n", "must have sections such as 'model:'"),
        ("", "must have sections such as 'model:'"),
        ("preset: [smoke]\n", "preset = ['smoke']: must be a preset's name"),
        ("workload:\n  seed: 1\n  seed: 2\n", ":3: not valid YAML (duplicate key 'seed')"),
        ("model: {}\nmodel: {}\n", ":2: not valid YAML (duplicate key 'model')"),
        ("workload: {seed: 1\n", "not valid YAML"),
        ("model: !!python/object/apply:os.getcwd []\n", "not valid YAML (could not determine a constructor"),
        ("workload:\n  ? [1]\n  : 2\n", "not valid YAML"),
        (b"model:\n  model: \xff\n", "not valid YAML"),
        ("model:\n  model: 2026-99-99\n", "not valid YAML"),
        ("model: " + "[" * 5000, "not valid YAML"),
        ("#" * (MAX_BYTES + 1), "larger than 64 KiB"),
        ("#" * 10_000_000, "larger than 64 KiB"),
        ("- " * 9000, "not valid YAML"),
        ("workload: &a {seed: 1}\nmodel: *a\n", ":2: not valid YAML (aliases are not allowed)"),
        (LAUGHS, ":2: not valid YAML (aliases are not allowed)"),
        (MERGES, ":2: not valid YAML (aliases are not allowed)"),
        ("model: !" + "t" * 60_000 + "\n", "not valid YAML (could not determine a constructor"),
        ("model: !" + "t" * 60_000 + "!\n", "not valid YAML"),
        ("? " + "z" * 30_000 + "\n: 1\n? " + "z" * 30_000 + "\n: 1\n", "duplicate key 'zzz"),
        ("\n".join(f"x{number}: 1" for number in range(99)), "… and 79 more"),
        ("model: !!python/name:os.system\n", "not valid YAML (could not determine a constructor"),
        ("model: !!python/object/new:os.system ['true']\n", "not valid YAML (could not determine a constructor"),
        ('workload: {seed: !!int ""}\n', "not valid YAML"),
        ("workload: {seed: !!bool x}\n", "not valid YAML"),
        ("workload: {seed: !!timestamp x}\n", "not valid YAML"),
        ("workload: {seed: !!float x}\n", "not valid YAML"),
        ("execution: {timeout_s: 1" + ":1" * 999 + ".5}\n", "not valid YAML"),
        ("workload: {top_k: 5.5, seed: -0x" + "F" * 9999 + "}\n", "seed = a number of 39996 bits"),
        ("mesh: {num_gpus: 0x" + "F" * 9999 + "}\n", "num_gpus = a number of 39996 bits"),
        ("model_name: gpt2-xl\n", "model_name: unknown key; it is model.model here"),
        ("model:\n  torch_dtype: float16\n", "model.torch_dtype: unknown key; it is execution.dtype here"),
        ("workload: [" + "[xxxxxxxxx], " * 5000 + "]\n", "must hold fields such as 'prompts: …', not [["),
        ("? " + "z" * 60_000 + "\n: {}\n", "zzz"),
        ("workload:\n  ? " + "z" * 60_000 + "\n  : 1\n", "zzz"),
    ],
)
def test_mistakes_are_named_with_the_file(write, text, message):
    path = write(text)

    problems = problems_of(path)

    assert message in "\n".join(problems)
    assert all(str(path) in problem for problem in problems[:20])
    assert all("\n" not in problem and len(problem) < 1000 for problem in problems)
    assert len(problems) <= 21


def test_all_mistakes_are_told_at_once(write):
    problems = problems_of(write("model:\n  modle: x\nworkload:\n  sed: 1\nmsh: {}\n"))

    assert len(problems) == 3


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read (No such file" in problems_of(tmp_path / "absent.yaml")[0]
    assert "cannot be read (Is a directory" in problems_of(tmp_path)[0]


def test_the_command_line_prints_what_it_would_run(write):
    path = write("preset: smoke\nworkload:\n  batch_size: 3\n  max_length: 4\n")
    run = CliRunner().invoke

    printed = run(app, ["run", "--config", str(path), "--max-length", "5", "--print-config"])
    again = run(app, ["doctor", "--config", str(write(printed.stdout)), "--print-config"])

    assert printed.exit_code == again.exit_code == 0
    assert "  batch_size: 3\n" in printed.stdout
    assert "  max_length: 5\n" in printed.stdout
    assert "  model: gpt2-nano\n" in printed.stdout
    assert again.stdout == printed.stdout


def test_a_wrong_file_is_exit_code_2(write, capfd):
    done = CliRunner().invoke(app, ["run", "--config", str(write("workload:\n  sede: 1\n"))])

    assert done.exit_code == 2
    assert "did you mean 'seed'?" in capfd.readouterr().err + done.output
