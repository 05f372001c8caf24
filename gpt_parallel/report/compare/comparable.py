"""The rules for comparing runs: verified, of the same work, on the same machine."""

from gpt_parallel.schema.summary import CaseSummary

# Fields in which both sides must agree.
_SAME = {
    "workload": "workload_sha256",
    "engine": "engine",
    "mesh": "mesh",
    "device": "device_name",
    "processor": "cpu",
    "number of cores": "num_cores",
    "number of machines": "num_hosts",
    "cores per rank": "cores_per_rank",
    "back end": "backend",
    "oversubscription": "oversubscribed",
}
# Fields whose change may be the subject of the comparison, so it is noted and not refused.
_TOLD = {"torch": "torch", "linear layers": "linear", "attention": "attention", "decoding": "decode"}
_TOLD_IF_KNOWN = {
    "attention kernels of prefill": "attention_prefill",
    "attention kernels of decode": "attention_decode",
    "judge": "judge",
}


def reason_unverified(summary: CaseSummary | None, side: str) -> str | None:
    """Why a case is not verified, or None."""
    if summary is None:
        return "not a generation case: nothing proves that it did the same work (gate gpt_parallel cases only)"
    if summary.verified not in ("exact", "tie"):
        return f"the {side} run was not verified ({summary.verified})"
    return None


def reason_not_comparable(
    before: CaseSummary | None, after: CaseSummary | None, allow_other_host: bool = False
) -> str | None:
    """Why two cases may not be compared, or None: unverified, other work, or another machine."""
    problem = reason_unverified(before, "base") or reason_unverified(after, "head")
    if problem or before is None or after is None:
        return problem
    for what, name in _SAME.items():
        if getattr(before, name) != getattr(after, name):
            shown = "" if name.endswith("sha256") else f": {getattr(before, name)} and {getattr(after, name)}"
            return f"base and head differ in {what}{shown}"
    if before.hostname != after.hostname and not allow_other_host:
        return f"base and head differ in host: {before.hostname} and {after.hostname} (--allow-other-host accepts it)"
    return None


def differences(before: CaseSummary | None, after: CaseSummary | None) -> list[str]:
    """Differences between two comparable runs that a reader should know."""
    if before is None or after is None:
        return []
    pairs = {what: (getattr(before, name), getattr(after, name)) for what, name in {**_TOLD, **_TOLD_IF_KNOWN}.items()}
    told = [
        f"base and head differ in {what}: {old} and {new}"
        for what, (old, new) in pairs.items()
        if old != new and not (what in _TOLD_IF_KNOWN and None in (old, new))
    ]
    sides = (("base", before.why_not_repeatable), ("head", after.why_not_repeatable))
    return told + [f"{side} is not repeatable: {why}" for side, why in sides if why]
