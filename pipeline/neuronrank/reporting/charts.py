"""Charts as SVG text, for a page that needs no network. The bytes depend on the data alone."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from neuronrank.reporting.details import Records
from neuronrank.reporting.results import Row

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "neuronrank", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True})


def _svg(figure: Figure) -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None}, bbox_inches="tight")
    svg = target.getvalue()
    return svg[svg.index("<svg") :]


def _grid(n_panels: int, height: float) -> tuple[Figure, list[Any]]:
    """Return a figure with two or three panels a row, whichever leaves no gap, else two."""
    n_columns = min(n_panels, 3 if n_panels % 3 == 0 else 2)
    n_rows = -(-n_panels // n_columns)
    figure = Figure(figsize=(4.2 * n_columns, height * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for unused in axes[n_panels:]:
        unused.set_axis_off()
    return figure, list(axes[:n_panels])


def _unique(values: Sequence[object]) -> list[Any]:
    return list(dict.fromkeys(values))


def perplexity_chart(rows: Sequence[Row]) -> str:
    """Draw perplexity by recipe, one panel per text, one colour per pattern, the dense model as a line."""
    texts = _unique([row.text for row in rows])
    pruned = [row for row in rows if row.to_dense is not None]
    recipes, patterns = _unique([row.recipe for row in pruned]), _unique([row.pattern for row in pruned])
    figure, axes = _grid(len(texts), 0.9 + 0.3 * len(recipes) * len(patterns))
    height = 0.8 / len(patterns)
    for axis, text in zip(axes, texts, strict=True):
        for row in (row for row in rows if row.text == text):
            if row.to_dense is None:
                axis.axvline(row.perplexity, color="black", linewidth=1, linestyle="--", label="dense")
                continue
            place = recipes.index(row.recipe) + (patterns.index(row.pattern) + 0.5) * height - 0.4
            label = row.pattern if row.recipe == recipes[0] else None
            colour = f"C{patterns.index(row.pattern)}"
            axis.barh(place, row.perplexity, height=0.9 * height, color=colour, label=label)
            axis.annotate(f" {row.perplexity:.4g}", (row.perplexity, place), va="center", fontsize=8)
        axis.set(xscale="log", title=text, xlabel="perplexity (log scale, lower is better)")
        axis.set_yticks(range(len(recipes)), recipes)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.grid(axis="x", alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower right", bbox_to_anchor=(0, 1))
    return _svg(figure)


def sparsity_chart(records: Records) -> str:
    """Draw sparsity by layer, one panel per pattern and part, one line per recipe."""
    panels = _unique([(record["pattern"], record["part"]) for record in records])
    figure, axes = _grid(len(panels), 2.8)
    for axis, (pattern, part) in zip(axes, panels, strict=True):
        chosen = [record for record in records if (record["pattern"], record["part"]) == (pattern, part)]
        for number, recipe in enumerate(_unique([record["recipe"] for record in chosen])):
            points = [(record["layer"], record["sparsity"]) for record in chosen if record["recipe"] == recipe]
            # Lines often coincide: each is thinner than the one below, so that all stay visible.
            axis.plot(*zip(*points, strict=True), label=recipe, linewidth=max(1.0, 8 - 2 * number))
        axis.set(title=f"{pattern}, {part}", xlabel="layer", ylabel="share removed", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return _svg(figure)


def factor_chart(records: Records) -> str:
    """Draw how far each module's factor spreads around its median, one panel per recipe and part."""
    panels = _unique([(record["recipe"], record["part"]) for record in records])
    if not panels:
        return ""
    figure, axes = _grid(len(panels), 2.8)
    for axis, (recipe, part) in zip(axes, panels, strict=True):
        chosen = [record for record in records if (record["recipe"], record["part"]) == (recipe, part)]
        for low, high, alpha in ((1, 99, 0.2), (5, 95, 0.3), (25, 75, 0.45)):
            spread = [(_layer_mean(chosen, low, layer), _layer_mean(chosen, high, layer)) for layer in _layers(chosen)]
            axis.fill_between(
                _layers(chosen), *zip(*spread, strict=True), alpha=alpha, color="C0", label=f"{low}-{high} %"
            )
        axis.set(title=f"{recipe}, {part}", xlabel="layer", ylabel="factor / median", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return _svg(figure)


def _layers(records: Records) -> list[Any]:
    return sorted({record["layer"] for record in records})


def _layer_mean(records: Records, percentile: int, layer: float) -> float:
    values = [float(r["relative"]) for r in records if r["percentile"] == percentile and r["layer"] == layer]
    return sum(values) / len(values)
