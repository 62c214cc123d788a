"""Bring the model or the texts to this machine."""

from pathlib import Path

import click

from neuronrank.fetching import fetch_model, fetch_text
from neuronrank.params import lookup, read_params
from stages._command import Metrics, OutPath, stage_command


@stage_command(
    "fetch",
    "python -m stages.fetch model",
    "--out artifacts/model",
    "--metrics metrics/fetch/model.json",
)
@click.argument("what", type=click.Choice(["model", "text"]))
@click.option("--out", type=OutPath, required=True, help="Directory to write.")
def main(what: str, out: Path, params: Path) -> Metrics:
    """Fetch the MODEL or the TEXT that params.yaml names, check it, and describe what it is."""
    section = lookup(read_params(params), what)
    if what == "model":
        described = fetch_model(section, out)
        return {"tensors": len(described["tensors"]), "fingerprint": described["fingerprint"]}
    return {f"{name.replace('/', '_')}_documents": n for name, n in fetch_text(section, out).items()}


if __name__ == "__main__":
    main()
