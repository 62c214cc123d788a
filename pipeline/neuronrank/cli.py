"""The `neuronrank` command: what is not a DVC stage."""

from pathlib import Path

import click

from neuronrank.errors import NeuronrankError

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
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List every scoring method, or explain one: its formula, source, parameters and presets.

    Example: neuronrank methods neuronrank_tfidf
    """
    from neuronrank.describing_methods import method_description, methods_table

    click.echo("\n".join(methods_table() if name is None else method_description(name)))
