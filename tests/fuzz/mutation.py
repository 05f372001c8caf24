"""Valid documents, broken: random bytes alone never come past a parser's first line."""

import copy
import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gpt_parallel.base.errors import SpecError


def attempt(read, *arguments):
    """What is read, or None, and what was said against it. Any other exception is a crash."""
    try:
        return read(*arguments), []
    except SpecError as error:
        assert error.problems  # noqa: PT017 - what is refused is refused with words
        return None, error.problems


def are_named(problems, *places):
    """Whether each problem begins with its place and all can be read by a person."""
    return all(problem.startswith((*places, "… and")) and len(problem) < 5000 for problem in problems)


# The same examples each time, so that nothing depends on luck.
FUZZ = settings(
    max_examples=2000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def nested(levels, make):
    value = None
    for _ in range(levels):
        value = make(value)
    return value


HOSTILE = [
    *(None, True, False, 0, 1, 2, -1, 7, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1e-320, 1e-12, 1e15, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "1",
        "1e999",
        "NaN",
        "\0",
        "\ud800",
        "\x1b[31m",
        "=1+1",
        "<script>",
        "{{ 1 }}",
        "|\n|",
        "$x$",
        "x" * 5000,
    ),
    *([], {}, [[]], [None], {"": None}, {"x": {}}, [1] * 1000, ["x", 1], {"a": 1, "b": [2]}),
    *(nested(63, lambda value: [value]), nested(70, lambda value: {"x": value}), nested(150, lambda value: [value])),
]
hostile = st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    hostile, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def alike(value):
    """Values of the same kind, with which a document may still be one."""
    same = [other for other in HOSTILE if type(other) is type(value)]
    return st.sampled_from(same or HOSTILE).map(copy.deepcopy)


def _slots(node):
    """Every place in a document: what it is in, and its key or index."""
    found, pending = [], [node]
    while pending:
        container = pending.pop()
        items = list(container.items() if isinstance(container, dict) else enumerate(container))
        found += [(container, key) for key, _ in items]
        pending += [value for _, value in items if isinstance(value, dict | list)]
    return found


@st.composite
def mutated(draw, documents):
    """One of the documents with up to three places changed, removed, renamed or exchanged."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(0, 3))):
        slots = _slots(document)
        if not slots:
            break
        container, key = slots[draw(st.integers(0, len(slots) - 1))]
        match draw(
            st.sampled_from(["replace", "replace", "alike", "alike", "null", "delete", "rename", "exchange", "repeat"])
        ):
            case "replace":
                container[key] = copy.deepcopy(draw(hostile))
            case "alike":
                container[key] = draw(alike(container[key]))
            case "null":
                container[key] = None
            case "delete":
                del container[key]
            case "rename" if isinstance(container, dict):
                container[draw(st.sampled_from(["", "x", "\ud800", "name"]) | st.text(max_size=5))] = container.pop(key)
            case "exchange":
                other, place = slots[draw(st.integers(0, len(slots) - 1))]
                container[key] = copy.deepcopy(other[place])
            case "repeat" if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
    return document


SPLICES = [
    b"",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 3000,
    b"\xff",
    b"\x00",
    b'"',
    b"}",
    b",",
    b"\\ud800",
    b"\xef\xbb\xbf",
]


@st.composite
def damaged(draw, texts):
    """A text that is left alone, cut off, or has something put in: half of the time a key for the second time."""
    text = draw(texts)
    at = draw(st.integers(0, len(text)))
    match draw(st.sampled_from(["leave", "leave", "cut", "splice", "key"])):
        case "cut":
            return text[:at]
        case "splice":
            return text[:at] + draw(st.sampled_from(SPLICES)) + text[at + draw(st.integers(0, 3)) :]
        case "key":
            start = text.find(b'{"', at)
            stop = text.find(b":", start)
            return text[: start + 1] + text[start + 1 : stop] + b": 1, " + text[start + 1 :] if start >= 0 else text
    return text


def json_texts(documents):
    """What a reader of JSON may be given in place of one of the documents."""
    return damaged(mutated(documents).map(lambda value: json.dumps(value).encode())) | st.binary(max_size=50)
