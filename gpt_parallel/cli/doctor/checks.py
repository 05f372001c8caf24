"""The checks of a machine: each finding is one plain sentence, with a remedy for problems and warnings."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from gpt_parallel.cli.doctor.cases import Feasibility
from gpt_parallel.cli.doctor.facts import DirectoryFacts, Facts, ModelFacts, SelfTest
from gpt_parallel.cli.doctor.findings import Finding, note, ok, problem, warning
from gpt_parallel.cli.doctor.gpu_checks import check_gpus
from gpt_parallel.inputs.models import ARCHITECTURES, has_published_weights, shipped_weights
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.layout.cost import gib
from gpt_parallel.schema.families.registry import tensor_shapes

_TORCH_FROM, _TORCH_BEFORE = (2, 11), (2, 14)  # as in pyproject.toml
_LEAST_FREE_BYTES = 256 << 20


def check(
    facts: Facts, settings: Settings, cases: Sequence[Feasibility] | str, self_test: SelfTest | None
) -> list[Finding]:
    """The findings. `cases` is an error message if the settings have none; `self_test` is None if it was skipped."""
    return [
        ok("Python", f"{facts.python} on {facts.platform}"),
        _torch(facts),
        *check_gpus(facts, settings.device),
        *_cores(facts, settings),
        _memory(facts),
        _threads(facts),
        *_directories(facts),
        _model(facts, settings),
        *_cases(cases),
        *([_self_test(self_test)] if self_test else []),
    ]


def _torch(facts: Facts) -> Finding:
    torch, remedy = facts.torch, "pip install 'torch>=2.11,<2.14'"
    if torch is None:
        return problem("torch", "torch is not installed", remedy)
    found = tuple(int(part) for part in torch.version.split("+")[0].split(".")[:2] if part.isdigit())
    text = f"{torch.version}, a {torch.build} build"
    if not _TORCH_FROM <= found < _TORCH_BEFORE:
        return warning("torch", f"{text}; gpt_parallel supports 2.11 to 2.13", remedy)
    return ok("torch", text)


def _cores(facts: Facts, settings: Settings) -> list[Finding]:
    text = f"{facts.cpu}, {facts.num_cores} cores"
    if facts.num_cores < facts.num_machine_cores:
        text += f" of the machine's {facts.num_machine_cores} (this process may use no more)"
    if facts.num_cores < 2 * settings.cores_per_rank:
        return [
            warning(
                "cores",
                f"{text}: ranks share them, so no strategy scales",
                "allow more cores (taskset, the container's --cpus), or lower --cores-per-rank",
            )
        ]
    return [ok("cores", text)]


def _memory(facts: Facts) -> Finding:
    return ok("memory", f"{gib(facts.memory_bytes)}, {gib(facts.available_bytes)} are free")


def _threads(facts: Facts) -> Finding:
    if not facts.thread_variables:
        return ok("threads", "no thread settings; a rank runs one thread for each of its cores")
    variables = ", ".join(f"{name}={value}" for name, value in facts.thread_variables.items())
    return note("threads", f"{variables}; in ranks --cores-per-rank replaces the numbers of threads")


def _directories(facts: Facts) -> list[Finding]:
    shm = "unknown" if facts.shm_bytes is None else gib(facts.shm_bytes)
    return [
        ok("shared memory", f"/dev/shm: {shm}; CPU ranks use anonymous shared memory instead"),
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
    """The finding about the files of the settings' model; those of others are only listed."""
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
    if settings.weights == "auto" and shipped_weights(model.name):
        return ok("model", f"{model.name}: weights are random (seeded); --weights checkpoint takes the trained ones")
    if model.directory is not None:
        return ok("model", f"{model.name}: {model.directory}")
    if settings.weights == "auto":
        return ok("model", f"{model.name}: no files on this disk, so weights are random (seeded)")
    if not has_published_weights(model.name):
        text = f"{model.name} has no trained weights anywhere"
        return problem("model", text, "use --weights random")
    size = download_bytes(model.name)
    if settings.offline:
        text = f"{model.name}: no files on this disk, and --offline forbids a download"
        return problem("model", text, remedy)
    if facts.cache.problem is not None or (facts.cache.free_bytes or 0) < size:
        reason = facts.cache.problem or f"{gib(facts.cache.free_bytes or 0)} are free"
        text = f"{model.name}: no files on this disk, and {facts.cache.path} cannot hold {gib(size)} ({reason})"
        return problem("model", text, f"set HF_HOME to a larger disk, or {remedy}")
    text = f"{model.name}: no files on this disk; the first run downloads {gib(size)} from the hub"
    return note("model", text)


def download_bytes(name: str) -> int:
    """The approximate size of the hub's file: float32 weights."""
    return sum(4 * prod(dimensions) for dimensions in tensor_shapes(ARCHITECTURES[name]).values())


def _cases(cases: Sequence[Feasibility] | str) -> list[Finding]:
    if isinstance(cases, str):
        return [problem("cases", cases, "change these settings")]
    num_runs, num_skipped = (sum(case.outcome == outcome for case in cases) for outcome in ("runs", "skipped"))
    skipped = f", {num_skipped} are skipped" if num_skipped else ""
    found = [(ok if num_runs else note)("cases", f"{num_runs} of {len(cases)} can run here{skipped}")]
    if num_skipped == len(cases):
        remedy = "use fewer devices with --num-gpus, let ranks share a GPU with --oversubscribe, or use --device cpu"
        found.append(problem("cases", "no case can run here", remedy))
    return found + _failing([case for case in cases if case.outcome == "fails"])


def _failing(cases: Sequence[Feasibility]) -> list[Finding]:
    """One finding for each reason, because an unsuitable model fails all cases for the same one."""
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
    where = f"two {test.device or 'CPU'} ranks over {test.backend or 'no backend'}"
    if test.problem is not None:
        if "did not finish within" in test.problem:
            remedy = "check whether the machine is busy, and try another --backend"
        else:
            remedy = "try another --backend (gloo works everywhere); the message says which rank failed and where"
        return problem("self-test", f"{where} failed: {test.problem}", remedy)
    parts = []
    for name, label in (("all_reduce", "sum"), ("gather", "gather"), ("send_receive", "round trip")):
        sizes = sorted((probe for probe in test.probes if probe.op == name), key=lambda probe: probe.bytes)
        if sizes:
            small, large = sizes[0], sizes[-1]
            parts.append(
                f"{label} {small.seconds * 1e6:,.0f} µs, {large.bytes / max(large.seconds, 1e-9) / 1e9:,.2f} GB/s"
            )
    return ok("self-test", f"{where}: {'; '.join(parts)}")
