"""Judges a machine's facts: each finding is one plain sentence, with a remedy where something is wrong."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from gpt_parallel.cli.doctor.cases import Feasibility
from gpt_parallel.cli.doctor.facts import DirectoryFacts, Facts, ModelFacts, SelfTest
from gpt_parallel.cli.doctor.findings import Finding, note, ok, problem, warning
from gpt_parallel.cli.doctor.judge_gpus import judge_gpus
from gpt_parallel.inputs.models import ARCHITECTURES, has_published_weights
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.cost import gib
from gpt_parallel.schema.families.registry import tensor_shapes

_TORCH_FROM, _TORCH_BEFORE = (2, 11), (2, 14)  # as in pyproject.toml
_LEAST_FREE_BYTES = 256 << 20


def judge(
    facts: Facts, settings: Settings, cases: Sequence[Feasibility] | str, self_test: SelfTest | None
) -> list[Finding]:
    """`cases` is a sentence where what was asked for has none; `self_test` None where it was not to be run."""
    return [
        ok("Python", f"{facts.python} on {facts.platform}"),
        _torch(facts),
        *judge_gpus(facts, settings.device),
        *_cores(facts, settings),
        _memory(facts),
        _threads(facts),
        *_directories(facts),
        _model(facts, settings),
        *_cases(cases),
        *([_self_test(self_test)] if self_test else []),
    ]


def _torch(facts: Facts) -> Finding:
    torch, wanted = facts.torch, "pip install 'torch>=2.11,<2.14'"
    if torch is None:
        return problem("torch", "torch is not installed", wanted)
    found = tuple(int(part) for part in torch.version.split("+")[0].split(".")[:2] if part.isdigit())
    text = f"{torch.version}, a {torch.build} build"
    if not _TORCH_FROM <= found < _TORCH_BEFORE:
        return warning("torch", f"{text}; 2.11 to 2.13 are what this was made for", wanted)
    return ok("torch", text)


def _cores(facts: Facts, settings: Settings) -> list[Finding]:
    text = f"{facts.cpu}, {facts.num_cores} cores"
    if facts.num_cores < facts.num_machine_cores:
        text += f" of the machine's {facts.num_machine_cores}, as this process may use no more"
    if facts.num_cores < 2 * settings.cores_per_rank:
        return [
            warning(
                "cores",
                f"{text}: ranks share them, so that nothing scales",
                "allow more cores (taskset, the container's --cpus), or lower --cores-per-rank",
            )
        ]
    return [ok("cores", text)]


def _memory(facts: Facts) -> Finding:
    return ok("memory", f"{gib(facts.memory_bytes)}, {gib(facts.available_bytes)} are free")


def _threads(facts: Facts) -> Finding:
    if not facts.thread_variables:
        return ok("threads", "no thread settings; a rank has a thread for each core")
    shown = ", ".join(f"{name}={value}" for name, value in facts.thread_variables.items())
    text = f"{shown}; numbers of threads are replaced in ranks by --cores-per-rank"
    return note("threads", text)


def _directories(facts: Facts) -> list[Finding]:
    shm = "unknown" if facts.shm_bytes is None else gib(facts.shm_bytes)
    return [
        ok("shared memory", f"/dev/shm: {shm}; CPU ranks use memory of their own instead"),
        _directory("temporary files", facts.temporary, "set TMPDIR to a directory that can be written"),
        _directory("output", facts.output, "choose another --output-dir, or change its permissions"),
    ]


def _directory(topic: str, directory: DirectoryFacts, remedy: str) -> Finding:
    if directory.problem is not None:
        return problem(topic, f"{directory.path}: {directory.problem}", remedy)
    free = directory.free_bytes
    if free is not None and free < _LEAST_FREE_BYTES:
        text = f"{directory.path}: only {free >> 20} MiB are free on its disk"
        return problem(topic, text, f"free some space, or {remedy}")
    text = f"{directory.path} can be written" + (f", {gib(free)} are free" if free is not None else "")
    return ok(topic, text)


def _model(facts: Facts, settings: Settings) -> Finding:
    """The asked model's files; those of others are only listed."""
    name = settings.model
    known = next((model for model in facts.models if model.name == name), None)
    if settings.weights == "random":
        return ok("model", f"{name} with random weights; no files are needed")
    if known is None:
        is_directory = Path(name).expanduser().is_dir()
        place = "a directory, checked with the cases" if is_directory else "not a known model, checked with the cases"
        return note("model", f"{name}: {place}")
    return _known_model(known, facts, settings)


def _known_model(model: ModelFacts, facts: Facts, settings: Settings) -> Finding:
    remedy = "use --weights random, or --model with a local directory"
    if model.problem is not None:
        return problem("model", f"{model.name}: {model.problem}", remedy)
    if model.directory is not None:
        return ok("model", f"{model.name}: {model.directory}")
    if settings.weights == "auto":
        return ok("model", f"{model.name}: no files here, so weights are random (seeded)")
    if not has_published_weights(model.name):
        text = f"{model.name} has no trained weights anywhere"
        return problem("model", text, "use --weights random")
    size = download_bytes(model.name)
    if settings.offline:
        text = f"{model.name}: no files here, and --offline was asked for"
        return problem("model", text, remedy)
    if facts.cache.problem is not None or (facts.cache.free_bytes or 0) < size:
        why = facts.cache.problem or f"{gib(facts.cache.free_bytes or 0)} are free"
        text = f"{model.name}: no files here, and {facts.cache.path} cannot take {gib(size)} ({why})"
        return problem("model", text, f"set HF_HOME to a larger disk, or {remedy}")
    text = f"{model.name}: no files here; the first run fetches {gib(size)} from the hub"
    return note("model", text)


def download_bytes(name: str) -> int:
    """About what the hub's file has: float32 weights."""
    return sum(4 * prod(dimensions) for dimensions in tensor_shapes(ARCHITECTURES[name]).values())


def _cases(cases: Sequence[Feasibility] | str) -> list[Finding]:
    if isinstance(cases, str):
        return [problem("cases", cases, "change these settings")]
    num_runs, num_skipped = (sum(case.outcome == outcome for case in cases) for outcome in ("runs", "skipped"))
    skipped = f", {num_skipped} are skipped" if num_skipped else ""
    found = [(ok if num_runs else note)("cases", f"{num_runs} of {len(cases)} can run here{skipped}")]
    if num_skipped == len(cases):
        remedy = "ask for fewer with --num-gpus, let ranks share a GPU with --oversubscribe, or use --device cpu"
        found.append(problem("cases", "not one case can run here", remedy))
    return found + _failing([case for case in cases if case.outcome == "fails"])


def _failing(cases: Sequence[Feasibility]) -> list[Finding]:
    """A finding for each reason, as a wrong model fails all cases alike."""
    by_reason: dict[str, list[str]] = {}
    for case in cases:
        by_reason.setdefault(case.reason, []).append(case.name)
    smaller = "use a smaller --model, --batch-size or --max-length, --dtype bfloat16, or other --num-gpus"
    other = "change these settings, or choose other cases with --strategy and --num-gpus"
    return [
        problem("cases", f"{', '.join(names)}: {reason}", smaller if "needs about" in reason else other)
        for reason, names in by_reason.items()
    ]


def _self_test(test: SelfTest) -> Finding:
    where = f"two {test.device or 'CPU'} ranks over {test.backend or 'no back end'}"
    if test.problem is not None:
        if "did not finish within" in test.problem:
            remedy = "see whether the machine is busy, and try another --backend"
        else:
            remedy = "try another --backend (gloo works everywhere); the message says which rank failed and where"
        return problem("self-test", f"{where} failed: {test.problem}", remedy)
    parts = []
    for name, shown in (("all_reduce", "sum"), ("gather", "gather"), ("send_receive", "there and back")):
        sizes = sorted((probe for probe in test.probes if probe.op == name), key=lambda probe: probe.bytes)
        if sizes:
            small, large = sizes[0], sizes[-1]
            parts.append(
                f"{shown} {small.seconds * 1e6:,.0f} µs, {large.bytes / max(large.seconds, 1e-9) / 1e9:,.2f} GB/s"
            )
    return ok("self-test", f"{where}: {'; '.join(parts)}")
