"""Comparisons between the cases of `fullsize`: each value with its expected range, and whether it is in the range."""

from __future__ import annotations

from typing import Any


def highest_peak(case: dict[str, Any]) -> float | None:
    """The highest peak of a case in GiB; loading with compilation may need more memory than a picture."""
    peaks = [case[fact] for fact in ("peak allocated GiB", "loading peak GiB") if case.get(fact)]
    return max(peaks, default=None)


def compare(cases: dict[str, dict[str, Any]]) -> list[tuple[str, float, str, bool | None]]:
    """All comparisons whose cases were measured: title, value, expected range, whether it is in the range."""

    def get(case: str, fact: str) -> float | None:
        return cases.get(case, {}).get(fact)

    rows: list[tuple[str, float, str, bool | None]] = []

    def ratio(title: str, above: float | None, below: float | None, limit: float, *, at_least: bool) -> None:
        if above and below:
            value = above / below
            holds = value >= limit if at_least else value <= limit
            rows.append((title, value, f"{'at least' if at_least else 'at most'} {limit:g}", holds))

    def near(title: str, predicted: float | None, measured: float | None) -> None:
        if predicted and measured:
            value = predicted / measured
            rows.append((title, value, "0.93 to 1.07", 0.93 <= value <= 1.07))

    def bound(title: str, value: float | None, limit: float) -> None:
        if value:
            rows.append((title, value, f"at most {limit:g} GiB", value <= limit))

    def same(title: str, one: Any, other: Any) -> None:
        if one and other:
            rows.append((title, float(one == other), "equal", one == other))

    peak = "peak allocated GiB"
    # The times of fluxnb are for an encoded prompt; plain diffusers encodes it again unless embeddings are given.
    plain = get("resident", "picture from embeddings seconds") or get("resident", "picture seconds")
    loop = get("model-offload-24", "naive grid seconds, estimated")
    bound("lean under 24 GiB: peak", get("lean-24", peak), 19)
    same("lean: bytes of plain bf16", get("lean-24", "sha"), get("resident", "sha"))
    ratio("lean: further picture / resident", get("lean-24", "picture seconds"), plain, 1.05, at_least=False)
    ratio(
        "model offload / lean, new prompt each", get("model-offload-24", "picture seconds"),
        get("lean-24", "new prompt picture seconds"), 15, at_least=True,
    )  # fmt: skip
    bound("8-bit storage under 16 GiB: peak", get("fp8-16", peak), 11)
    ratio("8-bit storage / resident", get("fp8-16", "picture seconds"), plain, 1.3, at_least=False)
    bound("NF4 under 8 GiB: peak", get("nf4-8", peak), 6.5)
    ratio("NF4 / resident", get("nf4-8", "picture seconds"), plain, 1.2, at_least=False)
    bound("stream: peak", get("stream", peak), 4)
    same("stream: bytes of plain bf16", get("stream", "sha"), get("resident", "sha"))
    ratio("stream / resident", get("stream", "picture seconds"), plain, 99, at_least=False)
    bound("mapped stream: peak", get("mapped", peak), 4)
    same("mapped stream: bytes of plain bf16", get("mapped", "sha"), get("resident", "sha"))
    ratio("mapped stream / resident", get("mapped", "picture seconds"), plain, 99, at_least=False)
    ratio(
        "grid: naive loop / sweep, resident", get("grid", "naive grid seconds"),
        get("grid", "grid seconds"), 1.5, at_least=True,
    )  # fmt: skip
    ratio(
        "grid: naive loop / second sweep, resident", get("grid", "naive grid seconds"),
        get("grid", "grid again seconds"), 1.5, at_least=True,
    )  # fmt: skip
    same("grid: bytes, resident", get("grid", "grid sha"), get("grid", "naive grid sha"))
    ratio("grid: naive loop / sweep, 24 GiB", loop, get("lean-24", "grid seconds"), 15, at_least=True)
    same("grid: bytes, lean", get("lean-24", "grid sha"), get("resident", "naive grid sha"))
    reference, after = "plain diffusers from embeddings seconds", "picture from embeddings seconds"
    for case, times in (("fast", 1.5), ("fast-apart", 1.5), ("fast-autotune", 1.5), ("fast-fp8", 2.2)):
        ratio(f"plain diffusers / {case}, diffusers call", get(case, reference), get(case, after), times, at_least=True)
        ratio(
            f"plain diffusers / {case}, fnb.run",
            get(case, reference),
            get(case, f"fluxnb {after}"),
            times,
            at_least=True,
        )
    for case, facts in cases.items():
        predicted = facts.get("predicted GiB")
        near(f"{case}: predicted / measured peak", predicted, facts.get(peak))
        if highest_peak(facts) != facts.get(peak):
            near(f"{case}: predicted / highest peak, including compilation", predicted, highest_peak(facts))
    return rows
