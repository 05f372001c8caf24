"""Measures two git commits side by side: fresh launches in the order A B B A …, compared block by block.

Launches close in time find the machine in the same state, so each block's A is compared with that block's B only. The
rule is fixed beforehand: every case is judged after the given number of blocks. If no case is a FAIL or an ERROR and at
least one is INCONCLUSIVE, the same number of blocks is measured again and all cases are judged again, at most twice.
The error rate is divided among these looks (Bonferroni) and the cases (Holm).
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.signals import uninterrupted
from gpt_parallel.bench.worktrees import WORKTREE_PREFIX, find_commit, find_repository, remove_leftovers, worktree
from gpt_parallel.report.compare.comparable import differences, reason_not_comparable
from gpt_parallel.report.compare.gate import ALPHA, detectable_effect
from gpt_parallel.report.compare.statistics import Effect, holm, paired, pairs_needed
from gpt_parallel.report.compare.verdicts import GateResult, GateVerdict, Rules, Verdict
from gpt_parallel.report.saved_run import SavedRun, load_run

MAX_LOOKS = 3
Log = Callable[[str], None]
_STOP_WAIT_S = 10


@dataclass(frozen=True)
class AbBlock:
    """One launch of every case at each commit, directly after each other."""

    base: SavedRun
    head: SavedRun

    @property
    def sides(self) -> tuple[tuple[str, SavedRun], tuple[str, SavedRun]]:
        return ("base", self.base), ("head", self.head)


def run_ab(
    base_ref: str, head_ref: str, arguments: Sequence[str], *, num_blocks: int, threshold: float, log: Log
) -> GateResult:
    """Measure both commits and judge. Raises SpecError if git or a benchmark run fails; removes all worktrees."""
    if num_blocks < 3:
        raise SpecError(f"--blocks {num_blocks}: at least 3 are needed to judge")
    repository = find_repository()
    commits = {"base": find_commit(repository, base_ref), "head": find_commit(repository, head_ref)}
    remove_leftovers(repository)
    rules = Rules(threshold=threshold)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=WORKTREE_PREFIX)))
        trees = [stack.enter_context(worktree(repository, commit, scratch / name)) for name, commit in commits.items()]
        blocks: list[AbBlock] = []
        for look in range(MAX_LOOKS):
            for _ in range(num_blocks):
                blocks.append(_measure(len(blocks), num_blocks * (look + 1), trees, arguments, scratch, log))
            result = judge(blocks, rules)
            if result.verdict != Verdict.INCONCLUSIVE:
                break
            if look + 1 < MAX_LOOKS:
                log(f"inconclusive after {len(blocks)} blocks; measuring {num_blocks} more")
    return result


def judge(blocks: Sequence[AbBlock], rules: Rules) -> GateResult:
    """Judge every case by its blocks' paired log-ratios of throughput, at one of `MAX_LOOKS` looks."""
    result = GateResult(rules)
    failed = _failures(blocks)
    for name, reason in failed.items():
        result.add_error(name, reason)
    effects = {}
    for fullname, name in _names(blocks).items():
        ratios = _log_ratios(blocks, fullname, result)
        if not isinstance(ratios, str):
            effects[fullname] = paired(ratios)
        elif name not in failed:
            result.add_error(fullname, ratios)
    adjusted = holm([effect.p_above() for effect in effects.values()])
    for (fullname, effect), p_value in zip(effects.items(), adjusted, strict=True):
        kind, reason = _judge(effect, p_value, len(blocks), len(effects), rules.threshold)
        counts = (len(blocks), len(blocks))
        result.verdicts.append(GateVerdict(fullname, kind, reason, effect.ratio - 1, p_value, counts))
    if not result.verdicts:
        result.add_error("all cases", "no benchmark ran")
    return result


def _names(blocks: Sequence[AbBlock]) -> dict[str, str]:
    """All cases of all blocks: full names to names."""
    return {case.fullname: case.name for block in blocks for _, run in block.sides for case in run.cases}


def _failures(blocks: Sequence[AbBlock]) -> dict[str, str]:
    """The cases that failed at either commit, even if timed elsewhere: each with its first failure and the reason."""
    reasons: dict[str, str] = {}
    for number, block in enumerate(blocks, start=1):
        for side, run in block.sides:
            for name, reason in run.failed.items():
                reasons.setdefault(name, f"failed at {side} in block {number}: {reason}")
    return reasons


def _judge(effect: Effect, p_value: float, num_blocks: int, num_cases: int, threshold: float) -> tuple[Verdict, str]:
    alpha, limit = ALPHA / MAX_LOOKS, math.log1p(threshold)
    if effect.log_ratio > limit and p_value <= alpha:
        return Verdict.FAIL, f"slower by more than {threshold:.1%}, p = {p_value:.2g}"
    if effect.upper_bound(alpha) <= limit:
        return Verdict.PASS, f"a slowdown beyond {threshold:.1%} is ruled out"
    deviation = (effect.standard_error or 0.0) * math.sqrt(num_blocks)
    needed = pairs_needed(deviation, *detectable_effect(effect, limit, alpha, num_cases))
    more = f"about {max(needed, num_blocks + 1)} blocks" if needed else "more blocks than is reasonable"
    return Verdict.INCONCLUSIVE, f"spread {deviation:.1%} between blocks: {more} would tell"


def _log_ratios(blocks: Sequence[AbBlock], fullname: str, result: GateResult) -> list[float] | str:
    """ln(time at head ÷ time at base) of each block, or the reason why a block has none."""
    ratios = []
    for number, block in enumerate(blocks, start=1):
        cases = []
        for side, run in block.sides:
            case = next((case for case in run.cases if case.fullname == fullname), None)
            if case is None:
                reason = next((entry.reason for entry in run.not_run if fullname.endswith(f"::{entry.case}")), "")
                return f"missing at {side} in block {number}: {reason or 'it did not run'}"
            cases.append(case)
        problem = reason_not_comparable(cases[0].summary, cases[1].summary)
        if problem:
            return f"block {number}: {problem}"
        result.add_notes(differences(cases[0].summary, cases[1].summary))
        ratios.append(math.log(cases[1].stats.median / cases[0].stats.median))
    return ratios


def _measure(
    index: int, total: int, trees: Sequence[Path], arguments: Sequence[str], scratch: Path, log: Log
) -> AbBlock:
    order = (0, 1) if index % 2 == 0 else (1, 0)
    runs: dict[int, SavedRun] = {}
    for side in order:
        log(f"[{index + 1}/{total}] {('base', 'head')[side]}")
        runs[side] = _run_pytest(trees[side], arguments, scratch / f"{index}-{side}.json")
    return AbBlock(runs[0], runs[1])


def _run_pytest(tree: Path, arguments: Sequence[str], output: Path) -> SavedRun:
    """Run one pytest process with one commit's own package and benchmarks."""
    command = [sys.executable, "-m", "pytest", *(arguments or ["benchmarks"])]
    command += ["-p", "no:cacheprovider", f"--benchmark-json={output}"]
    path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = None
    try:
        with uninterrupted():  # the hooks that Python runs as it forks would lose a KeyboardInterrupt
            process = subprocess.Popen(
                command,
                cwd=tree,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # we pass a terminal's Ctrl-C on, once: a second would interrupt its clean-up
                preexec_fn=_restore_sigint,
            )
        printed, _ = process.communicate()
    except BaseException:
        if process is not None:
            _stop(process)
        raise
    if process.returncode not in (0, 1) or not output.is_file():
        tail = "\n".join(f"  {line}" for line in printed.strip().splitlines()[-15:])
        raise SpecError(f"pytest ended with code {process.returncode} and no benchmarks in {tree.name}:\n{tail}")
    return load_run(output)


def _restore_sigint() -> None:
    """Restore SIGINT's default action: a shell's background job ignores the signal, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: "subprocess.Popen[str]") -> None:
    """Interrupt pytest, so that it stops its ranks and removes their files; kill it if it does not end."""
    process.send_signal(signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_STOP_WAIT_S)
    finally:
        process.kill()
        process.wait()
