"""Documentation cannot rot: every command in it is run, long ones with the smoke preset and fewer cases.

The first of each kind is a cold process as its users start it, others are warm; what stands there twice is run once.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import warm
from tests.support.factories import bench, document
from tests.support.paths import ROOT
from tests.support.processes import environment

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PROGRAMS = ("pip", "pytest", "gpt-parallel")
COMMAND = re.compile(rf"^ {{4}}((?:{'|'.join(PROGRAMS)})(?: .*)?)$")
SMALL_RUN = ("--preset", "smoke", "--num-iterations", "1", "--device", "cpu")
SMALL_WORK = ("--model", "gpt2-nano", "--num-samples", "4", "--prompt-tokens", "8", "--max-length", "4")


def commands(path):
    """The commands of a document, in order."""
    return [words for _, words in commands_by_section(path)]


def commands_by_section(path):
    """With their headings: lines indented by four, continued behind a backslash, without comments."""
    heading, is_code = "", False
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        is_code ^= line.startswith("```")
        if line.startswith("#") and not is_code:
            heading = line.lstrip("# ")
        elif match := COMMAND.match(line):
            yield from ((heading, words) for words in _split(shlex.split(match.group(1), comments=True)))


def _split(words):
    while "&&" in words:
        at = words.index("&&")
        yield words[:at]
        words = words[at + 1 :]
    yield words


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, make_tiny_checkpoint):
    """What a newcomer's directory holds, and the files that commands in the documents name."""
    directory = tmp_path_factory.mktemp("checkout")
    for name in ("benchmarks", "configs", "tests"):
        shutil.copytree(
            ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "test_*" * (name == "tests"))
        )
    for name in ("conftest.py", "pytest.ini", ".gitignore"):
        shutil.copy(ROOT / name, directory)
    make_tiny_checkpoint(directory / "my-gpt2", n_head=4, vocab_size=300, n_positions=128)
    (directory / "prompts.jsonl").write_text('{"prompt": "Hello"}\n{"prompt_ids": [1, 2, 3]}\n')
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello!"}]
    (directory / "sharegpt.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    for words in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *words], cwd=directory, check=True, timeout=60)
    return directory


def save_runs(directory):
    """Files as the documents name them, of runs that are equal but for noise; real ones might be judged either way."""
    for name, spread in (("run", 1.0), ("base", 1.0), ("head", 0.9), ("before", 1.0), ("after", 1.1)):
        times = [100 + spread * offset for offset in (0.0, 1.0, -1.0, 0.5, -0.5, 0.0)]
        (directory / f"{name}.json").write_text(json.dumps(document(bench("case-4gpu", times))))


def fast(words):
    """The same command, made quick; None where another test runs it or nothing but its words can be checked here."""
    program, *rest = words
    if program == "pip":
        return None
    if program == "pytest":
        if not rest or "benchmarks" not in rest[0]:
            return None
        if rest[0] != "benchmarks":
            return [*words, "--collect-only", "-q"]  # the tools' own benchmarks take minutes
        chosen = () if {"-k", "-m"} & set(rest) or any("parallel-size" in word for word in rest) else ("-k", "1gpu")
        preset = () if "--gpt-preset" in rest or "--gpt-config" in rest else ("--gpt-preset", "smoke")
        if "-m" in rest:
            chosen = ("-k", "pure")  # of the cases that it chooses, which -k runs all
        if "--gpt-resume" in rest:
            return [*words, "--collect-only", "-q"]  # tests/end_to_end/test_interrupted_sessions.py resumes
        report = () if len(rest) == 1 else ("--gpt-no-report",)  # charts take longer than a small case
        return [*words, *preset, *chosen, *report, "--gpt-num-iterations", "1", "--gpt-device", "cpu"]
    if rest[0] == "bench":
        return [*words, "--collect-only", "-q"]  # tests/cli/test_bench.py runs it
    if rest[0] == "ab":
        return [program, "ab", "--help"]  # tests/bench/test_ab.py runs it
    if rest[0] == "run":
        return [*words, *SMALL_RUN, *(() if "--model" in rest else SMALL_WORK)]
    if rest[:2] in (["data", "generate"], ["data", "convert"]):
        return [*words, "--force"]
    return words


def planned():
    """What is run of each section: (command, whether it is the first of its program and subcommand)."""
    sections, seen = {}, set()
    for path in DOCS:
        for heading, words in commands_by_section(path):
            section = sections.setdefault(f"{path.name}: {heading}", [])
            quick = tuple(fast(words) or ())
            kind = quick[:2]
            if quick and quick not in seen:
                section.append((quick, kind not in seen))
            seen |= {quick, kind}
    return {section: found for section, found in sections.items() if found}


SECTIONS = planned()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_command_works(section, checkout):
    for command, is_first in SECTIONS[section]:
        save_runs(checkout)
        run = run_cold if is_first else warm.run
        done = run(command, cwd=checkout, env=environment(PYTHONDONTWRITEBYTECODE="1"))
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        status = subprocess.run(["git", "status", "--short"], cwd=checkout, capture_output=True, text=True, check=True)
        left = [line for line in status.stdout.splitlines() if line.startswith("??")]
        assert left == [], f"{shlex.join(command)} leaves files that .gitignore does not name"


def run_cold(command, *, cwd, env):
    program = Path(sys.executable).parent / command[0]
    return subprocess.run([str(program), *command[1:]], cwd=cwd, env=env, capture_output=True, text=True, timeout=200)


def test_what_is_to_be_installed_has_a_name():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in (words for path in DOCS for words in commands(path) if words[0] == "pip"):
        assert words[:3] == ["pip", "install", "-e"], words
        assert set(words[3][2:-1].split(",")) <= set(extras), words


def test_commands_are_found():
    found = [words[0] for path in DOCS for words in commands(path)]

    assert {program: found.count(program) > 1 for program in PROGRAMS} == dict.fromkeys(PROGRAMS, True)
    assert ["pytest", "benchmarks"] in commands(ROOT / "README.md")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_scripts_and_manifests_can_be_read(path):
    for language, text in re.findall(r"^```(bash|yaml)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        if language == "bash":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=10)
        else:
            assert all(isinstance(part, dict) for part in yaml.safe_load_all(text))


def test_every_fault_is_shown_by_a_test_that_exists():
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))

    assert len(named) > 40
    for path, function in named:
        assert f"def {function}" in (ROOT / "tests" / path).read_text(encoding="utf-8"), (path, function)


def test_the_chinese_readme_shows_the_same_commands():
    def quoted(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n.*?^```", text, re.M | re.S)
        images = re.findall(r"\]\(([^)]*\.(?:svg|png))\)", text)
        return commands(ROOT / name), blocks, images, len(re.findall(r"^## ", text, re.M))

    assert quoted("README.zh-CN.md") == quoted("README.md")
