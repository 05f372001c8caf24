"""Converts what earlier versions wrote to today's form."""

from collections.abc import Mapping
from typing import Any

_PLACE = (
    *("rank", "stage", "replica", "shard", "host", "device_name", "cores", "num_threads", "torch_version"),
    *("oversubscribed", "shared"),
)
_HOLDING = ("layers", "num_heads", "parameter_bytes", "kv_cache_bytes", "linear")
_GENERATED = ("rounds", "records", "attention", "collectives")
_DIAGNOSTICS = ("peak_memory_bytes", "phase_seconds", "telemetry", "peak_rates", "breakdown")


def nested_report(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A rank's report of version 1, which was flat, with sections. Unknown fields are kept, to be refused later."""
    rest = dict(flat)
    sections = {"place": _PLACE, "holding": _HOLDING, "generated": _GENERATED, "diagnostics": _DIAGNOSTICS}
    found: dict[str, Any] = {
        section: {name: rest.pop(name) for name in names if name in rest} for section, names in sections.items()
    }
    scores, probes = rest.pop("scores", ()), rest.pop("probes", ())
    if scores or probes:
        found["generated"] = None
        found["scored" if scores else "probed"] = scores or probes
    if not found["holding"].get("parameter_bytes"):
        found["holding"] = None
    return {**found, **rest}


def result_of_version_1(document: Mapping[str, Any]) -> dict[str, Any]:
    """A `result.json` of version 1 in the form of version 2. Invalid content is kept, to be refused later."""
    ranks = document.get("ranks")
    if isinstance(ranks, list):
        ranks = [nested_report(rank) if isinstance(rank, dict) else rank for rank in ranks]
    return {**document, "schema_version": 2, "ranks": ranks}
