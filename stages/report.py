"""Gather every result in tables, plots and one page."""

from pathlib import Path

import click

from neuronrank.outputs import output_directory
from neuronrank.params import lookup, read_params, validate
from neuronrank.reporting.details import FACTOR_COLUMNS, SPARSITY_COLUMNS, factor_percentiles, sparsity_by_layer
from neuronrank.reporting.page import render
from neuronrank.reporting.params import ReportParams, SequentialParams, SweepParams
from neuronrank.reporting.results import Inputs, compared_sequentially, flat, gather, protocol
from neuronrank.reporting.tables import markdown, write_csv
from stages._command import InDirectory, Metrics, OutPath, stage_command


@stage_command(
    "report",
    "python -m stages.report",
    "--artifacts artifacts",
    "--measured metrics",
    "--out artifacts/report",
    "--metrics metrics/report.json",
)
@click.option("--artifacts", type=InDirectory, required=True, help="Holds losses/, masks/ and scores/.")
@click.option("--measured", type=InDirectory, required=True, help="Holds the metrics of score, prune and eval.")
@click.option("--out", type=OutPath, required=True, help="Directory to write.")
def main(artifacts: Path, measured: Path, out: Path, params: Path) -> Metrics:
    """Write table.md, results.csv, sparsity_by_layer.csv, factors.csv and index.html."""
    read = read_params(params)
    sweep = validate(SweepParams, lookup(read, "sweep"), "sweep")
    sequential = validate(SequentialParams, lookup(read, "sequential"), "sequential")
    options = validate(ReportParams, lookup(read, "report"), "report")
    inputs = Inputs(
        losses=artifacts / "losses",
        masks=artifacts / "masks",
        scores=artifacts / "scores",
        score_metrics=measured / "score",
        prune_metrics=measured / "prune",
        eval_metrics=measured / "eval",
    )
    rows = gather(inputs, sweep, sequential, options)
    sparsity, factors = sparsity_by_layer(inputs, sweep), factor_percentiles(inputs, sweep)
    with output_directory(out) as partial:
        write_csv(partial / "results.csv", list(flat(rows[0])), [flat(row) for row in rows])
        write_csv(partial / "sparsity_by_layer.csv", SPARSITY_COLUMNS, sparsity)
        write_csv(partial / "factors.csv", FACTOR_COLUMNS, factors)
        (partial / "table.md").write_text(markdown(rows, options.reference), encoding="utf-8")
        page = render(rows, sparsity, factors, options.reference, protocol(inputs, sweep))
        (partial / "index.html").write_text(page, encoding="utf-8")
    return {"rows": len(rows), "sequential_to_reference": compared_sequentially(rows)}


if __name__ == "__main__":
    main()
