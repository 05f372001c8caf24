"""`gpt-parallel run`: one case without pytest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from gpt_parallel.case import summarise
from gpt_parallel.cli.common import errors, exit_codes, option
from gpt_parallel.launch.devices import default_preset
from gpt_parallel.launch.local import OnPhase
from gpt_parallel.result import RunResult, write_atomically
from gpt_parallel.settings import make_settings
from gpt_parallel.spec import SpecError
from gpt_parallel.strategies import STRATEGIES
from gpt_parallel.suite import CUSTOM, Suite, custom_mesh
from gpt_parallel.table import render_table

HELP = """Run one case without pytest: launch the ranks, verify every token, time the rounds.

Exit codes: 0 verified, 1 the run failed or did not verify, 2 wrong usage, 130 interrupted.

\b
Examples:
  gpt-parallel run --strategy pure_data_parallel --num-gpus 2
  gpt-parallel run --preset smoke --strategy full_model_parallel --num-gpus 4
  gpt-parallel run --strategy tensor_data_hybrid --num-gpus 2
      --model ./my-gpt2 --prompts prompts.jsonl --output-dir out
  gpt-parallel run --tensor-parallel-size 2 --pipeline-parallel-size 2
"""


def run(
    strategy: Annotated[str | None, option("--strategy", f"One of: {', '.join(STRATEGIES)}.")] = None,
    num_gpus: Annotated[int | None, option("--num-gpus", "Devices (ranks); on CPU a device is a pinned core.")] = None,
    tp: Annotated[int | None, option("--tensor-parallel-size", "Custom mesh: tensor-parallel degree.")] = None,
    pp: Annotated[int | None, option("--pipeline-parallel-size", "Custom mesh: pipeline stages.")] = None,
    dp: Annotated[int | None, option("--data-parallel-size", "Custom mesh: replicas.")] = None,
    preset: Annotated[str | None, option("--preset", "smoke, cpu or xl. Default: xl with CUDA GPUs, else cpu.")] = None,
    model: Annotated[str | None, option("--model", "Name, Hugging Face directory or hub id.")] = None,
    weights: Annotated[str | None, option("--weights", "checkpoint, random, or auto (real if on this disk).")] = None,
    weights_seed: Annotated[int | None, option("--weights-seed", "Seed of random weights.")] = None,
    offline: Annotated[bool, option("--offline", "Never ask the hub.")] = False,
    prompts: Annotated[str | None, option("--prompts", "builtin, random, or a JSON Lines file.")] = None,
    num_samples: Annotated[int | None, option("--num-samples", "How many requests.")] = None,
    batch_size: Annotated[int | None, option("--batch-size", "Requests per batch and replica.")] = None,
    prompt_tokens: Annotated[int | None, option("--prompt-tokens", "Cut or repeat prompts to this length.")] = None,
    max_length: Annotated[int | None, option("--max-length", "Tokens to generate for each prompt.")] = None,
    temperature: Annotated[float | None, option("--temperature", "0 is greedy (the default).")] = None,
    top_k: Annotated[int | None, option("--top-k", "Sample among the k best; 0: all.")] = None,
    top_p: Annotated[float | None, option("--top-p", "Sample among the smallest set with this probability.")] = None,
    repetition_penalty: Annotated[float | None, option("--repetition-penalty", "1: none.")] = None,
    seed: Annotated[int | None, option("--seed", "Seed of sampling and of random prompts.")] = None,
    device: Annotated[str | None, option("--device", "auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, option("--dtype", "auto, float32, bfloat16 or float16.")] = None,
    backend: Annotated[str | None, option("--backend", "auto, gloo or nccl.")] = None,
    cores_per_rank: Annotated[int | None, option("--cores-per-rank", "CPU cores each rank is pinned to.")] = None,
    oversubscribe: Annotated[bool, option("--oversubscribe", "Let ranks share a GPU, over gloo.")] = False,
    warmup: Annotated[int | None, option("--warmup", "Untimed passes, at least 1: the first is verified.")] = None,
    num_iterations: Annotated[int | None, option("--num-iterations", "Timed rounds.")] = None,
    timeout: Annotated[float | None, option("--timeout", "Deadline of one launch, in seconds.")] = None,
    no_verify: Annotated[bool, option("--no-verify", "Do not compare with a single-device run.")] = False,
    output_dir: Annotated[
        Path | None, option("--output-dir", "Where result.json goes. Default: reports/<strategy>-<n>gpu.")
    ] = None,
) -> None:
    given = {
        "num_gpus": None if num_gpus is None else str(num_gpus),
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "data_parallel_size": dp,
        "model": model,
        "weights": weights,
        "weights_seed": weights_seed,
        "offline": offline or None,
        "prompts": prompts,
        "num_requests": num_samples,
        "batch_size": batch_size,
        "prompt_tokens": prompt_tokens,
        "max_length": max_length,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "backend": backend,
        "cores_per_rank": cores_per_rank,
        "oversubscribe": oversubscribe or None,
        "warmup": warmup,
        "rounds": num_iterations,
        "timeout_s": timeout,
        "verify": False if no_verify else None,
    }
    with exit_codes(), _progress() as on_phase:
        suite = Suite(make_settings(preset or default_preset(), given), on_phase)
        spec = suite.spec(*_choose_case(suite, strategy))
        directory = output_dir or Path("reports") / spec.name
        _make_writable(directory)
        result = suite.run(spec)
        path = directory / "result.json"
        write_atomically(path, result.model_dump_json(indent=1) + "\n")
    _print(result, path)


def _choose_case(suite: Suite, strategy: str | None) -> tuple[str, int]:
    settings = suite.settings
    counts = settings.device_counts
    if settings.has_custom_mesh:
        if strategy is not None:
            raise SpecError("give either a strategy or parallel sizes, not both")
        return CUSTOM, custom_mesh(settings, counts[0] if counts else None).size
    if strategy is None:
        raise SpecError(f"--strategy is missing; allowed: {', '.join(STRATEGIES)} (or give the parallel sizes)")
    if not counts:
        raise SpecError("--num-gpus is missing: how many devices the strategy is to use")
    return strategy, counts[0]


def _make_writable(directory: Path) -> None:
    """Refuse an output directory that cannot be written before hours of work go into it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".gpt-parallel-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SpecError(f"output directory {directory}: cannot be written ({error.strerror})") from error


def _print(result: RunResult, path: Path) -> None:
    check = result.verification
    print(render_table([summarise([result])]))
    if check.status == "skipped":
        print("not verified (--no-verify)")
    else:
        print(f"verified: {check.status}, {check.tokens_compared} tokens compared with a single-device run")
    print(f"result: {path}")


@contextmanager
def _progress() -> Iterator[OnPhase]:
    """Rank 0's phases: a status line on a terminal, one line each in a log."""
    if not errors.is_terminal:
        yield lambda rank, phase: errors.print(phase) if rank == 0 else None
        return
    with errors.status("starting") as status:
        yield lambda rank, phase: status.update(phase) if rank == 0 else None
