"""The display of a plan: the chosen preset, the line to type, and a table with what fits first."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "as_html", "as_text", "sentence"]

HEADS = ("fits", "preset", "GPU", "RAM", "a picture", "numbers", "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A preset in the table.

    Arguments:
        fits: whether it can be used.
        chosen: whether the plan uses it.
        cells: name, GPU, RAM, duration of a picture and "exact" or "lossy", as text.
        remark: one sentence: what the preset does, or why it was refused.
    """

    fits: bool
    chosen: bool
    cells: tuple[str, ...]
    remark: str


def sentence(clause: str) -> str:
    """A clause as a sentence.

    Example:
        >>> sentence("there is no GPU")
        'There is no GPU.'
    """
    return clause[:1].upper() + clause[1:] + "."


def as_text(headline: str, line: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The plan as plain text, in characters that every console has; a ">" marks the chosen preset.

    Arguments:
        headline: what was planned and the result.
        line: what to type.
        rows: the presets, in the order of the table.
        notes: sentences below the table.
    """
    table: list[tuple[str, ...]] = [("fits", "", *HEADS[1:])]
    table += [("yes" if row.fits else "no", ">" if row.chosen else "", *row.cells, row.remark) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    lines = ["  ".join([cell.ljust(w) for cell, w in zip(row, widths, strict=False)] + [row[-1]]) for row in table]
    return "\n".join([headline, f"  {line}", *(text.rstrip() for text in lines), *notes])


def as_html(headline: str, line: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The plan as HTML; the arguments are those of `as_text`. It has no colors, so that every theme can display it."""
    head = "".join(f"<th scope='col' style='text-align:left'>{each}</th>" for each in HEADS)
    body = "".join(map(_row, rows))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    code = f"<pre style='margin:6px 0'>{html.escape(line)}</pre>" if line else ""
    paragraphs = "".join(f"<p style='margin:6px 0'>{html.escape(note)}</p>" for note in notes)
    return f"<p style='margin:6px 0'>{html.escape(headline)}</p>{code}{table}{paragraphs}"


def _row(row: Row) -> str:
    mark = "✓ yes" if row.fits else "✗ no"
    cells = "".join(
        f"<td style='text-align:left;vertical-align:top'>{html.escape(cell)}</td>" for cell in (mark, *row.cells)
    )
    remark = f"<td style='text-align:left;white-space:normal'>{html.escape(row.remark)}</td>"
    return f"<tr{' style=font-weight:600' if row.chosen else ''}>{cells}{remark}</tr>"
