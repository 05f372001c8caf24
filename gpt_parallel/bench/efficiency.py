"""MBU and MFU: a run's share of its devices' measured peaks."""

from collections.abc import Sequence
from statistics import median

from gpt_parallel.layout.cost import bytes_per_step, flop_per_round, num_lanes
from gpt_parallel.schema.result import Figures, RankReport
from gpt_parallel.schema.run import RunSpec
from gpt_parallel.schema.telemetry import Efficiency


def efficiency(spec: RunSpec, ranks: Sequence[RankReport], figures: Figures) -> Efficiency:
    """MBU and MFU of a run against the peaks that its ranks measured.

    MBU (model bandwidth utilisation): bytes that a rank has to read in one TPOT ÷ (TPOT × the bytes per second that it
    can read), of the rank nearest to its limit. Source: Databricks, "LLM Inference Performance Engineering:
    Best Practices" (2023). In one TPOT a stage serves every lane once. It may exceed 1 where caches hold the weights.

    MFU (model FLOPs utilisation): operations of a round ÷ (the median round's seconds × the ranks' operations per
    second). Source: Chowdhery et al., "PaLM" (2022), appendix B.
    """
    methods = [rates.method for rank in ranks if (rates := rank.diagnostics.peak_rates)]
    needed, operations = [bytes_per_step(spec, rank) for rank in ranks], flop_per_round(spec)
    values: dict[str, float] = {}
    unavailable = {}
    reading = _peaks(ranks, "bytes_per_s")
    multiplying = _peaks(ranks, "flop_per_s")
    if isinstance(reading, str):
        unavailable["mbu"] = reading
    elif figures.tpot_s:
        lanes = num_lanes(spec)
        shares = (num_bytes / rate for num_bytes, rate in zip(needed, reading, strict=True))
        values["mbu"] = lanes * max(shares) / figures.tpot_s
    else:
        unavailable["mbu"] = "there is no time per output token: each request has a single one, or no round was timed"
    if isinstance(multiplying, str):
        unavailable["mfu"] = multiplying
    elif figures.round_seconds:
        values["mfu"] = operations / (median(figures.round_seconds) * sum(multiplying))
    else:
        unavailable["mfu"] = "no round was timed"
    return Efficiency(
        peak=methods[0] if methods else "not measured",
        bytes_per_step=max(needed),
        flop_per_round=operations,
        unavailable=unavailable,
        **values,
    )


def _peaks(ranks: Sequence[RankReport], name: str) -> list[float] | str:
    """Every rank's peak, or the reason why it is missing."""
    found = []
    for rank in ranks:
        rates = rank.diagnostics.peak_rates
        if rates is None:
            return "the peak was not measured: no round was timed, or telemetry was switched off"
        rate = getattr(rates, name)
        if not rate:
            return f"rank {rank.place.rank}: {rates.unavailable.get(name, 'the peak is 0')}"
        found.append(rate)
    return found
