"""`gpt-parallel help`: prints the sections of docs/troubleshooting.md, which lead from a symptom to its remedy."""

import re
from pathlib import Path
from typing import Annotated, get_args

import typer

from gpt_parallel.base.errors import HelpTopic, SpecError
from gpt_parallel.base.suggestions import did_you_mean
from gpt_parallel.cli.common import exit_codes, option

HELP = """Go from a symptom to its remedy: GPU not visible, out of memory, timeouts, unstable results and others.

Without a topic the topics are listed; "all" prints every section.

\b
Examples:
  gpt-parallel help
  gpt-parallel help memory
  gpt-parallel help strategy --lang zh
"""
_PAGES = {"en": "troubleshooting.md", "zh": "troubleshooting.zh-CN.md"}
_SECTION = re.compile(r'<a id="([a-z-]+)"></a>\n## ([^\n]+)\n(.*?)(?=\n<a id=|\Z)', re.DOTALL)


def sections(language: str) -> dict[str, tuple[str, str]]:
    """The title and text of each topic's section."""
    package, name = Path(__file__).parents[1], _PAGES[language]
    pages = (package / "docs" / name, package.parent / "docs" / name)  # in a wheel, and in a checkout
    text = next(page for page in pages if page.is_file()).read_text(encoding="utf-8")
    return {topic: (title, body.strip()) for topic, title, body in _SECTION.findall(text)}


def show_help(
    topic: Annotated[str | None, typer.Argument(help="A topic, or all.", show_default=False)] = None,
    lang: Annotated[str, option("--lang", "Language: en or zh.")] = "en",
) -> None:
    with exit_codes():
        if lang not in _PAGES:
            raise SpecError(f"--lang {lang!r}: allowed are {', '.join(_PAGES)}")
        found = sections(lang)
        if topic is None:
            width = max(map(len, found))
            print("\n".join(f"{name:{width}}  {title}" for name, (title, _) in found.items()))
            return
        if topic != "all" and topic not in found:
            allowed = get_args(HelpTopic)
            raise SpecError(f"no topic {topic!r}; allowed: {', '.join(allowed)}, all{did_you_mean(topic, allowed)}")
        chosen = list(found.values()) if topic == "all" else [found[topic]]
        print("\n\n".join(f"{title}\n{'=' * len(title)}\n\n{_plain(body)}" for title, body in chosen))


def _plain(text: str) -> str:
    """Markdown as it reads well in a terminal: without the marks of emphasis, links with their files."""
    text = re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"\1 (docs/\2)", text)
    return re.sub(r"(?<!`)(\*{1,2})([^*`\n]+)\1(?!`)", r"\2", text)
