"""`gpt-parallel help`, and the pages that it prints."""

import re
import shlex
from typing import get_args

import pytest
from typer.testing import CliRunner

from gpt_parallel.base.errors import HelpTopic
from gpt_parallel.cli import app
from gpt_parallel.cli.help import sections
from gpt_parallel.inputs.option_aliases import with_bare_values
from tests.support.paths import ROOT

LANGUAGES = ("en", "zh")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "gpt_parallel").rglob("*.py")))


def run(*arguments):
    return CliRunner().invoke(app, ["help", *arguments])


def commands(text):
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_both_languages_have_every_topic_and_the_same_commands():
    english, chinese = (sections(language) for language in LANGUAGES)

    assert list(english) == list(chinese) == list(get_args(HelpTopic))
    for topic in english:
        assert commands(english[topic][1]) == commands(chinese[topic][1]), topic
        options = [set(re.findall(r"--[a-z_-]+", page[topic][1])) for page in (english, chinese)]
        assert options[0] == options[1], topic


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_topics_are_listed_and_printed(language):
    listed = run("--lang", language)
    assert listed.exit_code == 0
    assert len(listed.stdout.splitlines()) == len(get_args(HelpTopic))

    one = run("memory", "--lang", language)
    assert one.exit_code == 0
    assert sections(language)["memory"][0] in one.stdout
    assert "--batch-size 2" in one.stdout
    assert "](" not in one.stdout

    figures = run("figures", "--lang", language).stdout
    assert "`*`" in figures, "a mark is no emphasis"
    assert "**" not in figures
    assert "Symptom: `out" in one.stdout or language != "en"

    assert run("all", "--lang", language).stdout.count("====") >= 15


def test_unknown_topics_and_languages_are_one_sentence():
    wrong = run("memry")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "no topic 'memry'; allowed: gpu, memory" in wrong.stderr
    assert "did you mean 'memory'?" in wrong.stderr
    assert "--lang 'de': allowed are en, zh" in run("--lang", "de").stderr


def quoted_messages():
    """The parts of messages that the page quotes as symptoms, between ellipses and what varies."""
    for topic, (_, body) in sections("en").items():
        symptom = body.partition("\n\n")[0]
        if symptom.startswith("*Symptom:*"):
            for text in re.findall(r"`([^`]+)`", symptom.replace("\n", " ")):
                yield from ((topic, part.strip()) for part in re.split("…|600|rank [01]|'[a-z ]+'|[0-9]+", text))


def test_every_symptom_is_a_message_that_exists():
    parts = [(topic, part.strip(" :(),;.")) for topic, part in quoted_messages()]
    parts = [(topic, part) for topic, part in parts if len(part) > 8]

    assert len(parts) >= 12
    source = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
    assert [(topic, part) for topic, part in parts if part not in source] == []


def test_every_run_on_the_page_is_a_valid_command():
    lines = [line for _, body in sections("en").values() for line in commands(body)]
    lines = [line for line in lines if line.startswith("gpt-parallel run")]
    assert len(lines) >= 6
    for line in lines:
        arguments = with_bare_values([*shlex.split(line)[1:], "--print-config"])
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (line, done.output)


def test_links_lead_somewhere():
    for name in (
        "troubleshooting.md",
        "troubleshooting.zh-CN.md",
        "coming-from.md",
        "coming-from.zh-CN.md",
        "prompts.md",
    ):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / "docs" / target).exists(), (name, target)


def test_errors_name_topics_that_exist():
    named = set(re.findall(r"see\(['\"]([a-z-]+)['\"]\)", SOURCES))

    assert named <= set(get_args(HelpTopic))
    assert {"gpu", "memory", "timeout", "model", "start", "permissions"} <= named
    done = CliRunner().invoke(app, ["run", "--preset", "smoke", "--model", "nosuch"])
    assert "(see: gpt-parallel help model)" in done.stderr
