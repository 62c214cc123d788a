"""A command that the trials' own tests kill: it writes a text as the pipeline does, or over the earlier one."""

from pathlib import Path

import click

from neuronrank.outputs import output_file

FIRST_TO_BE_KILLED = 2
"""One run makes the earlier output, another one tells what is written and when."""


@click.command()
@click.argument("how", type=click.Choice(["whole", "in-place", "idle-once"]))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--params", type=click.Path(path_type=Path), required=True)
def main(how: str, out: Path, params: Path) -> None:
    """Write the name of the parameter file 40 times; idle once, the first run to be killed writes nothing."""
    text, runs = f"{params.name}\n" * 40, Path("runs")
    n_runs = len(runs.read_text()) if runs.exists() else 0
    runs.write_text("x" * (n_runs + 1))
    if how == "idle-once" and n_runs == FIRST_TO_BE_KILLED:
        return
    if how == "in-place":
        out.write_text(text)
        return
    with output_file(out) as partial:
        partial.write_text(text)


if __name__ == "__main__":
    main()
