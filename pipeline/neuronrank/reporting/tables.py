"""The table as Markdown and as CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuronrank.comparison import Ratio
from neuronrank.reporting.results import Row

_HEADINGS = ("pattern", "recipe", "perplexity", "x dense", "x {reference}", "sparsity*", "score s", "prune s", "eval s")


def markdown(rows: Sequence[Row], reference: str) -> str:
    """Return one table per text, widths aligned for a terminal."""
    blocks = []
    for text in dict.fromkeys(row.text for row in rows):
        headings = [heading.format(reference=reference) for heading in _HEADINGS]
        lines = [_cells(row) for row in rows if row.text == text]
        widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
        table = [headings, ["-" * width for width in widths], *lines]
        body = ["| " + " | ".join(_pad(line, widths)) + " |" for line in table]
        blocks.append("\n".join([f"Evaluation text: {text}", "", *body]))
    notes = (
        "* share of weights removed: of the selected modules / of all decoder linears / of the whole model.\n"
        "In brackets: 95 % bootstrap confidence interval over paired evaluation windows."
    )
    return "\n\n".join([*blocks, notes]) + "\n"


def _cells(row: Row) -> list[str]:
    shares = " / ".join(f"{row.sparsity[name]:.3f}" for name in ("selected", "linears", "model"))
    times = [f"{row.seconds[stage]:.2f}" if stage in row.seconds else "" for stage in ("score", "prune", "eval")]
    figures = [f"{row.perplexity:.2f}", _ratio(row.to_dense), _ratio(row.to_reference)]
    return [row.pattern, row.recipe, *figures, shares, *times]


def _ratio(ratio: Ratio | None) -> str:
    return f"{three_digits(ratio.value)} [{three_digits(ratio.low)}, {three_digits(ratio.high)}]" if ratio else ""


def three_digits(value: float) -> str:
    """Return a number with at least three significant digits, never in exponent notation."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]


def write_csv(path: Path, columns: Sequence[str], records: Sequence[Mapping[str, object]]) -> None:
    """Write records as CSV; without records only the heading."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
