"""The `neuronrank` command: what is not a DVC stage."""

import os
from pathlib import Path

import click

from neuronrank.errors import NeuronrankError
from neuronrank.oneshot.command import run

# Threads that spin while they wait take the cores from the compiled loops between two torch calls.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Existing = click.Path(exists=True, path_type=Path)


class _Commands(click.Group):
    """Prints an error of ours as one message and exits with code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except NeuronrankError as err:
            raise click.ClickException(str(err)) from err


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neuronrank")
def main() -> None:
    """Calibrate once, ask everything."""


main.add_command(run)


@main.command()
@click.option("--model", type=Existing, default="artifacts/model", show_default=True, help="What fetch left.")
@click.option("--mask", type=Existing, required=True, help="What prune wrote.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory to write; must not exist.")
@click.option("--compact", is_flag=True, help="Cut removed neurons out instead of zeroing them (rule: structured).")
def export(model: Path, mask: Path, out: Path, compact: bool) -> None:
    """Join a base model and a mask into an ordinary Hugging Face directory.

    Example: neuronrank export --mask artifacts/masks/wanda/50pct.safetensors --out pruned/wanda-50pct
    """
    from neuronrank.checkpoint import open_model
    from neuronrank.export import export_model
    from neuronrank.mask_store import MaskFile

    masks = MaskFile(mask)
    if compact:
        from neuronrank.compact import export_compact

        before, after = export_compact(open_model(model), masks, out)
        click.echo(
            f"{out}: {after} of {before} neurons left in every layer, {masks.header['sparsity']['model']:.2%} "
            f"of the whole model cut out"
        )
        return
    n_removed = export_model(open_model(model), masks, out)
    share = masks.header["sparsity"]["model"]
    click.echo(f"{out}: {n_removed} weights set to zero, {share:.2%} of the whole model")


@main.command()
@click.option("--params", type=Existing, default="params.yaml", show_default=True, help="Parameter file.")
def check(params: Path) -> None:
    """Validate the whole parameter file and report every fault at once.

    Example: neuronrank check
    """
    from neuronrank.project import check_params

    n_recipes, n_patterns = check_params(params)
    click.echo(f"{params}: sound; {n_recipes} recipes, {n_patterns} patterns")


@main.command()
@click.option("--model", type=Existing, default="artifacts/model", show_default=True, help="What fetch left.")
@click.option("--tokens", type=Existing, default="artifacts/tokens", show_default=True, help="What prepare left.")
@click.option("--params", type=Existing, default="params.yaml", show_default=True, help="Parameter file.")
@click.option("--results", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--document", type=Existing, help="Markdown file whose marked table is replaced.")
def table(model: Path, tokens: Path, params: Path, results: Path, document: Path | None) -> None:
    """Collect once, then score, prune and evaluate every recipe with every pattern.

    Example: neuronrank table --results docs/results.json --document docs/RESULTS.md
    """
    from neuronrank.checkpoint import open_model
    from neuronrank.files import write_json
    from neuronrank.method_table import measure_all, render, replace_table
    from neuronrank.params import read_params
    from neuronrank.windows import read_windows

    evaluation = {path.stem: read_windows(path) for path in sorted((tokens / "evaluation").glob("*.safetensors"))}
    calibration = read_windows(tokens / "calibration/windows.safetensors")
    result = measure_all(open_model(model), calibration, evaluation, read_params(params), click.echo)
    write_json(results, result)
    if document:
        replace_table(document, render(result))
    click.echo(render(result))
