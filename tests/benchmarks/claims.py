"""What the cases of `fullsize` show together: each claim with its number, what was promised, and whether it holds."""

from __future__ import annotations

from typing import Any


def most(case: dict[str, Any]) -> float | None:
    """The highest peak of a case, GiB: what is compiled is also tried before it is, and that takes more memory."""
    peaks = [case[fact] for fact in ("peak allocated GiB", "loading peak GiB") if case.get(fact)]
    return max(peaks, default=None)


def ratios(cases: dict[str, dict[str, Any]]) -> list[tuple[str, float, str, bool | None]]:
    """What the cases show together: the claim, the number, what was promised, whether it holds."""

    def get(case: str, fact: str) -> float | None:
        return cases.get(case, {}).get(fact)

    rows: list[tuple[str, float, str, bool | None]] = []

    def ratio(says: str, above: float | None, below: float | None, limit: float, at_least: bool) -> None:
        if above and below:
            value = above / below
            holds = value >= limit if at_least else value <= limit
            rows.append((says, value, f"{'at least' if at_least else 'at most'} {limit:g}", holds))

    def near(says: str, predicted: float | None, measured: float | None) -> None:
        if predicted and measured:
            value = predicted / measured
            rows.append((says, value, "0.93 to 1.07", 0.93 <= value <= 1.07))

    def bound(says: str, value: float | None, limit: float) -> None:
        if value:
            rows.append((says, value, f"at most {limit:g} GiB", value <= limit))

    def same(says: str, one: Any, other: Any) -> None:
        if one and other:
            rows.append((says, float(one == other), "equal", one == other))

    peak = "peak allocated GiB"
    # Ours are seconds of a prompt that is known already; plain diffusers reads it anew unless it is given embeddings.
    plain = get("resident", "picture from embeddings seconds") or get("resident", "picture seconds")
    loop = get("model-offload-24", "naive grid seconds, reckoned")
    bound("lean under 24 GiB: peak", get("lean-24", peak), 19)
    same("lean: bytes of plain bf16", get("lean-24", "sha"), get("resident", "sha"))
    ratio("lean: a further picture beside resident", get("lean-24", "picture seconds"), plain, 1.05, False)
    ratio(
        "model offload beside lean, a new prompt each", get("model-offload-24", "picture seconds"),
        get("lean-24", "new prompt picture seconds"), 15, True,
    )  # fmt: skip
    bound("8-bit storage under 16 GiB: peak", get("fp8-16", peak), 11)
    ratio("8-bit storage beside resident", get("fp8-16", "picture seconds"), plain, 1.3, False)
    bound("NF4 under 8 GiB: peak", get("nf4-8", peak), 6.5)
    ratio("NF4 beside resident", get("nf4-8", "picture seconds"), plain, 1.2, False)
    bound("stream: peak", get("stream", peak), 4)
    same("stream: bytes of plain bf16", get("stream", "sha"), get("resident", "sha"))
    ratio("stream beside resident", get("stream", "picture seconds"), plain, 99, False)
    bound("mapped stream: peak", get("mapped", peak), 4)
    same("mapped stream: bytes of plain bf16", get("mapped", "sha"), get("resident", "sha"))
    ratio("mapped stream beside resident", get("mapped", "picture seconds"), plain, 99, False)
    ratio(
        "grid: naive loop beside sweep, resident", get("grid", "naive grid seconds"),
        get("grid", "grid seconds"), 1.5, True,
    )  # fmt: skip
    ratio(
        "grid: the same, our second sweep", get("grid", "naive grid seconds"), get("grid", "grid again seconds"),
        1.5, True,
    )  # fmt: skip
    same("grid: bytes, resident", get("grid", "grid sha"), get("grid", "naive grid sha"))
    ratio("grid: naive loop beside sweep, 24 GiB", loop, get("lean-24", "grid seconds"), 15, True)
    same("grid: bytes, lean", get("lean-24", "grid sha"), get("resident", "naive grid sha"))
    reference, after = "plain diffusers from embeddings seconds", "picture from embeddings seconds"
    for case, times in (("fast", 1.45), ("fast-apart", 1.45), ("fast-autotune", 1.45), ("fast-fp8", 1.9)):
        ratio(f"{case} beside plain diffusers, by its call", get(case, reference), get(case, after), times, True)
        ratio(f"{case} beside plain diffusers, by run", get(case, reference), get(case, f"our {after}"), times, True)
    for case, facts in cases.items():
        predicted = facts.get("predicted GiB")
        near(f"{case}: predicted peak beside measured", predicted, facts.get(peak))
        if most(facts) != facts.get(peak):
            near(f"{case}: predicted peak beside the highest, compiling included", predicted, most(facts))
    return rows
