"""The plans for schnell on thirty machines, in plans.md; each row was reviewed.

`python -m tests.planning.test_golden_plans` writes the table again. Review the difference before committing it.
"""

from __future__ import annotations

from pathlib import Path

from fluxnb.errors import RunError
from fluxnb.planning.plan import plan

TABLE = Path(__file__).with_name("plans.md")
MACHINES = (
    "colab-t4", "kaggle-t4", "kaggle-p100", "colab-l4", "colab-a100", "colab-g4", "a10g", "l40s", "a100-80gb", "h100",
    "h200", "b200", "rtx-2060", "rtx-3060-12gb", "rtx-3070", "rtx-3080", "rtx-3090", "rtx-4060", "rtx-4070",
    "rtx-4080", "rtx-4090", "rtx-5080", "rtx-5090", "8gb/64gb", "16gb/64gb", "mac-m1-16gb", "mac-m2-pro-32gb",
    "mac-m4-max-64gb", "cpu-16gb", "cpu-64gb",
)  # fmt: skip
HEAD = ("machine", "preset", "GPU GiB", "RAM GiB", "s a picture", "+ s a new prompt", "numbers", "in", "why")


def row(name: str) -> tuple[str, ...]:
    try:
        chosen = plan("schnell", name)
    except RunError as problem:
        return (name, "none", "", "", "", "", "", "", problem.remedy)
    return (
        name,
        chosen.preset
        + (", blocks offloaded" if chosen.offload_blocks else "")
        + (", weights cached" if chosen.cache_weights else ""),
        f"{chosen.vram_gib:.1f}",
        f"{chosen.ram_gib:.0f}",
        f"{chosen.seconds:.2g}" if chosen.seconds < 10 else f"{chosen.seconds:.0f}",
        f"{chosen.prompt_seconds:.1f}",
        "exact" if chosen.exact else "lossy",
        chosen.dtype,
        chosen.why,
    )


def table() -> str:
    rows = [HEAD, tuple("---" for _ in HEAD), *map(row, MACHINES)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "# FLUX.1-schnell, 1024 px, 4 steps\n\n" + "\n".join(lines) + "\n"


def test_every_machine_has_the_plan_that_was_reviewed():
    assert table() == TABLE.read_text(encoding="utf-8")


def test_a_plan_fits_the_machine_it_is_for():
    for name in MACHINES:
        try:
            chosen = plan("schnell", name)
        except RunError:
            continue
        assert chosen.machine is not None
        assert chosen.vram_gib <= chosen.machine.vram_gib and chosen.ram_gib <= chosen.machine.ram_gib


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
