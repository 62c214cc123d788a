"""The `neuronrank` command: what is not a DVC stage."""

import os
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from neuronrank.errors import NeuronrankError
from neuronrank.oneshot.command import run
from neuronrank.printing import echo_json, echo_lines, printable_lines, told

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries are noise in a log

Existing = click.Path(exists=True, path_type=Path)


class _Commands(click.Group):
    """Prints an error of ours as one message and exits with code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (NeuronrankError, OSError) as err:
            raise click.ClickException(told(err)) from err


class _Trouble(click.ClickException):
    """An error of a command whose exit code 1 says something else."""

    exit_code = 2


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
@click.argument("parts", type=Existing, nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory to write.")
def merge(parts: tuple[Path, ...], out: Path) -> None:
    """Join statistics of different windows of one text or of several; the later parts were --fitted-on the first.

    Example: neuronrank merge artifacts/statistics elsewhere/statistics --out merged
    """
    from neuronrank.merging_artifacts import merge_artifacts

    manifest = merge_artifacts(parts, out)
    click.echo(f"{out}: statistics of {manifest['calibration']['n_windows']} windows")


@main.command("import-imatrix")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", type=Existing, default="artifacts/model", show_default=True, help="What fetch left.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory to write; must not exist.")
def import_imatrix(file: Path, model: Path, out: Path) -> None:
    """Make a statistics artifact of an importance matrix that llama.cpp measured on a model: Wanda can be scored.

    Example: neuronrank import-imatrix imatrix.gguf --out artifacts/imported
    """
    from neuronrank.checkpoint import open_model
    from neuronrank.importing_imatrix import import_imatrix as read_into

    found = read_into(file, open_model(model), out)
    click.echo(f"{out}: sums of {found.n_tokens} tokens from {found.n_entries} entries")
    if not found.names_its_model:
        click.echo("the file does not say which model it was measured on; names and shapes fit this one")
    if found.left_out:
        click.echo(f"left out, as no module that is pruned has them: {len(found.left_out)} tensors or entries")
    if found.n_empty_experts:
        click.echo(f"{found.n_empty_experts} experts saw no token and cannot be scored")


@main.command("export-imatrix")
@click.argument("statistics", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="GGUF file to write; must not exist.")
def export_imatrix(statistics: Path, out: Path) -> None:
    """Write statistics as an importance matrix, for llama-quantize --imatrix: entries of what is pruned, no others.

    Example: neuronrank export-imatrix artifacts/statistics --out imatrix.gguf
    """
    from neuronrank.exporting_imatrix import export_imatrix as write_from
    from neuronrank.imatrix import rounded_counts

    written = write_from(statistics, out)
    click.echo(f"{out}: {len(written.entries)} entries, {written.chunk_count} chunks of {written.chunk_size} tokens")
    n_rounded = sum(map(rounded_counts, written.entries.values()))
    if n_rounded:
        click.echo(
            f"{n_rounded} counts of tokens are above 2^24 and were rounded to float32, as in llama.cpp", err=True
        )


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
    from neuronrank.locks import one_writer
    from neuronrank.method_table import measure_all, render, replace_table
    from neuronrank.outputs import require_no_directory
    from neuronrank.params import read_params
    from neuronrank.project import check_params
    from neuronrank.windows import read_evaluation_windows, read_windows, require_same_tokenizer

    check_params(params)  # a fault in the last recipe would cost all that was measured before it
    opened = open_model(model)
    evaluation = read_evaluation_windows(tokens / "evaluation", opened.tokenizer_sha256)
    path = tokens / "calibration/windows.safetensors"
    calibration = read_windows(path)
    require_same_tokenizer(calibration, path, opened.tokenizer_sha256)
    with one_writer(results):  # a place that cannot be written to is told before hours of work
        require_no_directory(results)
        result = measure_all(opened, calibration, evaluation, read_params(params), click.echo)
        write_json(results, result)
    if document:
        replace_table(document, render(result), "make table")
    click.echo(render(result))


@main.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List every scoring method, or explain one: its formula, source, parameters and presets.

    Example: neuronrank methods neuronrank_tfidf
    """
    from neuronrank.describing_methods import method_description, methods_table

    click.echo("\n".join(methods_table() if name is None else method_description(name)))


_LLAMA_7B = {
    "hidden": 4096,
    "intermediate": 11008,
    "layers": 32,
    "heads": 32,
    "kv_heads": 32,
    "head_dim": 128,
    "vocab": 32000,
}
_CALIBRATION = {"windows": 128, "window_tokens": 2048, "classes": 512, "micro_topics": 128}


def _numbers(command: click.Command) -> click.Command:
    """Add an option for every number that decides the size of an artifact."""
    for name, value in (_LLAMA_7B | _CALIBRATION).items():
        lowest = 0 if name in ("classes", "micro_topics") else 1
        option = "--" + name.replace("_", "-")
        command.params.append(click.Option([option], type=click.IntRange(lowest), default=value, show_default=True))
    return command


@_numbers
@main.command()
@click.option("--config", type=Existing, help="A model's config.json; numbers given beside it go first.")
@click.option("--like", type=Existing, help="A statistics artifact: estimate the size as stored from what it takes.")
@click.option("--gram", is_flag=True, help="With Gram matrices.")
@click.option("--tied", is_flag=True, help="The output head is the embeddings; --config says so itself.")
def size(config: Path | None, like: Path | None, **numbers: int) -> None:
    """Tell how large a statistics artifact will be, for every profile; by default of a 7B Llama.

    Example: neuronrank size --config inputs/model/mine/config.json --windows 64 --like artifacts/statistics
    """
    from neuronrank.model_shape import Sizes, read_config
    from neuronrank.sizing import measure, size_lines

    context = click.get_current_context()
    given = {name for name in numbers if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    stated = read_config(config) if config else {}
    sizes = Sizes(**(numbers | {name: value for name, value in stated.items() if name not in given}))
    click.echo("\n".join(size_lines(sizes, measure(like) if like else None)))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what an artifact holds: statistics (a directory), or a file of scores, masks, losses or token windows.

    Example: neuronrank inspect artifacts/statistics
    """
    from neuronrank.files import canonical_json
    from neuronrank.inspecting import describe
    from neuronrank.inspection_text import inspection_lines

    found = describe(path)
    echo_json(canonical_json(found)) if as_json else echo_lines(inspection_lines(found))


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON, whole.")
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Say in which settings, and then numbers, two artifacts of one kind differ.

    Statistics, models and exported models are directories; scores, masks, losses, token windows and importance matrices
    of llama.cpp are files. NaN equals NaN.

    Exit code: 0 when they are equal, 1 when they differ, 2 on an error.

    Example: neuronrank diff mine/wanda.safetensors artifacts/scores/wanda.safetensors
    """
    from neuronrank.difference_text import difference_lines
    from neuronrank.differing import difference
    from neuronrank.files import canonical_json

    try:
        found = difference(a, b)
    except (NeuronrankError, OSError) as err:
        # One that names no file is none to be raised: it would end with 1, as what differs does.
        nameless = isinstance(err, OSError) and err.filename is None
        raise _Trouble(printable_lines(f"{a}, {b}: {err}") if nameless else told(err)) from err
    echo_json(canonical_json(found)) if as_json else echo_lines(difference_lines(found))
    click.get_current_context().exit(0 if found["equal"] else 1)


@main.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True)
def verify(paths: tuple[Path, ...]) -> None:
    """Check that artifacts are whole and sound, and say which of them were made from which.

    PATHS are directories of statistics, of a model or of an exported model; files of scores, masks, losses or token
    windows; or directories that hold such; or importance matrices. The exit code is 0 only when no fault is found.

    Example: neuronrank verify artifacts
    """
    from neuronrank.verifying import verify as findings_of

    found = findings_of(paths)
    n_faults = sum(finding.is_fault for finding in found)
    echo_lines(finding.line() for finding in found)
    click.echo(f"{len(found)} checks, {n_faults} faults")
    click.get_current_context().exit(1 if n_faults else 0)


@main.command()
@click.argument("statistics", type=click.Path(path_type=Path))
@click.option("--layer", type=int, required=True, help="Which layer, from 0.")
@click.option("--topics", type=int, help="Merge the micro-topics to so many topics; as collected when left out.")
@click.option("--model", type=click.Path(path_type=Path), default="artifacts/model", show_default=True)
@click.option("--examples", type=click.IntRange(0), default=5, show_default=True, help="Tokens shown of each topic.")
def topics(statistics: Path, layer: int, topics: int | None, model: Path, examples: int) -> None:
    """Show a layer's topics: how many tokens each has, and those nearest to its centroid, with their context.

    Example: neuronrank topics artifacts/statistics --layer 3 --topics 16
    """
    from neuronrank.statistics_store import Statistics
    from neuronrank.topic_report import read_topics, topic_lines

    opened = Statistics(statistics)
    echo_lines(topic_lines(opened, read_topics(opened, layer, topics), model, examples))
