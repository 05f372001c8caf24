"""Measures two git commits side by side: fresh launches in the order A B B A …, judged block by block.

Neighbours in time share the machine's mood, so each block's A and B are compared with each other and with nothing else.
The rule is fixed beforehand: after the asked number of blocks every case is judged; while any is inconclusive as many
blocks again are measured, at most twice. The error rate is shared out over these looks (Bonferroni) and cases (Holm).
"""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt_parallel.report.gate import ALPHA, CaseVerdict, GateResult, Rules, Verdict, why_not_comparable
from gpt_parallel.report.load import SavedRun, load_run
from gpt_parallel.report.statistics import holm, paired
from gpt_parallel.spec import SpecError

MAX_LOOKS = 3
Say = Callable[[str], None]


@dataclass(frozen=True)
class Block:
    """One launch of every case at each commit, one right after the other."""

    base: SavedRun
    head: SavedRun


def run_ab(
    base_ref: str, head_ref: str, arguments: Sequence[str], *, num_blocks: int, threshold: float, say: Say
) -> GateResult:
    """Measure and judge. Raises SpecError if a commit, git or a benchmark run fails; worktrees are always removed."""
    if num_blocks < 3:
        raise SpecError(f"--blocks {num_blocks}: at least 3 are needed to judge")
    repository = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    _git(Path(repository), "worktree", "prune")  # what a killed run may have left behind
    rules = Rules(threshold=threshold)
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpt_parallel-ab-")))
        trees = [
            stack.enter_context(_worktree(Path(repository), ref, room / name))
            for name, ref in (("base", base_ref), ("head", head_ref))
        ]
        blocks: list[Block] = []
        for look in range(MAX_LOOKS):
            for _ in range(num_blocks):
                blocks.append(_measure(len(blocks), num_blocks * (look + 1), trees, arguments, room, say))
            result = judge(blocks, rules)
            if result.verdict != Verdict.INCONCLUSIVE:
                break
            if look + 1 < MAX_LOOKS:
                say(f"inconclusive after {len(blocks)} blocks; measuring {num_blocks} more")
    return result


def judge(blocks: Sequence[Block], rules: Rules) -> GateResult:
    """Every case over its blocks' paired log-ratios of throughput, at one of `MAX_LOOKS` looks."""
    alpha = ALPHA / MAX_LOOKS
    result = GateResult(rules)
    names = list(
        dict.fromkeys(case.fullname for block in blocks for run in (block.base, block.head) for case in run.cases)
    )
    effects = {}
    for name in names:
        ratios = _log_ratios(blocks, name)
        if isinstance(ratios, str):
            result.verdicts.append(CaseVerdict(name, Verdict.ERROR, ratios))
        else:
            effects[name] = paired(ratios)
    if not names:
        result.verdicts.append(CaseVerdict("all cases", Verdict.ERROR, "no benchmark ran"))
    limit = math.log1p(rules.threshold)
    for (name, effect), p_value in zip(effects.items(), holm([e.p_above() for e in effects.values()]), strict=True):
        count = len(blocks)
        if effect.log_ratio > limit and p_value <= alpha:
            kind, reason = Verdict.FAIL, f"slower by more than {rules.threshold:.1%}, p = {p_value:.2g}"
        elif effect.upper_bound(alpha) <= limit:
            kind, reason = Verdict.PASS, f"a slowdown beyond {rules.threshold:.1%} is ruled out"
        else:
            kind, reason = Verdict.INCONCLUSIVE, f"not told apart from {rules.threshold:.1%} in {count} blocks"
        result.verdicts.append(CaseVerdict(name, kind, reason, effect.ratio - 1, p_value, (count, count)))
    return result


def _log_ratios(blocks: Sequence[Block], name: str) -> list[float] | str:
    """log(time at head ÷ time at base) of each block, or why there is none."""
    ratios = []
    for number, block in enumerate(blocks, start=1):
        sides = []
        for side, run in (("base", block.base), ("head", block.head)):
            case = next((case for case in run.cases if case.fullname == name), None)
            if case is None:
                why = next((entry.reason for entry in run.not_run if entry.case in name), "it did not run")
                return f"missing at {side} in block {number}: {why}"
            sides.append(case)
        problem = why_not_comparable(sides[0].summary, sides[1].summary)
        if problem:
            return f"block {number}: {problem}"
        ratios.append(math.log(sides[1].stats.median / sides[0].stats.median))
    return ratios


def _measure(index: int, total: int, trees: Sequence[Path], arguments: Sequence[str], room: Path, say: Say) -> Block:
    order = (0, 1) if index % 2 == 0 else (1, 0)
    runs: dict[int, SavedRun] = {}
    for side in order:
        say(f"[{index + 1}/{total}] {('base', 'head')[side]}")
        runs[side] = _run_pytest(trees[side], arguments, room / f"{index}-{side}.json")
    return Block(runs[0], runs[1])


def _run_pytest(tree: Path, arguments: Sequence[str], output: Path) -> SavedRun:
    """One pytest process on one commit's own package and benchmarks."""
    command = [sys.executable, "-m", "pytest", *(arguments or ["benchmarks"])]
    command += ["-p", "no:cacheprovider", f"--benchmark-json={output}"]
    path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate()
    except BaseException:
        process.terminate()  # pytest ends its ranks as it goes; the kernel ends them if it cannot
        process.wait()
        raise
    if process.returncode not in (0, 1) or not output.is_file():
        tail = "\n".join(f"  {line}" for line in printed.strip().splitlines()[-15:])
        raise SpecError(f"pytest ended with code {process.returncode} and no benchmarks in {tree.name}:\n{tail}")
    return load_run(output)


@contextmanager
def _worktree(repository: Path, ref: str, path: Path) -> Iterator[Path]:
    """A commit checked out beside the working tree, which is not touched."""
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", what=f"commit {ref!r}")
    _git(repository, "worktree", "add", "--detach", "--quiet", str(path), commit)
    try:
        yield path
    finally:
        _git(repository, "worktree", "remove", "--force", str(path))


def _git(directory: Path, *arguments: str, what: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=120
        )
    except FileNotFoundError as error:
        raise SpecError("git is not installed") from error
    except subprocess.SubprocessError as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        raise SpecError(f"{what or 'git ' + arguments[0]}: {reason or 'no such commit'}") from error
    return done.stdout.strip()
