"""The trials' command line.

Example: python -m trials kills --trials 55 --seed 0
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

import click

from trials.building import built
from trials.kills import kill_trials, table
from trials.steps import STEPS


@click.group()
def main() -> None:
    """Try what no test can try often enough."""


@main.command()
@click.option(
    "--trials", type=click.IntRange(1), default=55, show_default=True, help="How many, by turns of the steps."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments.")
@click.option("--only", multiple=True, type=click.Choice([step.name for step in STEPS]), help="Only these steps.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file to write.")
def kills(trials: int, seed: int, only: tuple[str, ...], results: Path | None) -> None:
    """Kill every stage and command at random moments and hold what is left, and what the next run makes of it."""
    logging.basicConfig(level=logging.WARNING)  # the steps' own lines would hide the trials'
    steps = [step for step in STEPS if not only or step.name in only]
    with tempfile.TemporaryDirectory() as folder, built(Path(folder)):
        found = kill_trials(Path(folder), steps, trials, seed)
    if results:
        results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    click.echo(table(found))
    sys.exit(any(step["failures"] for step in found.values()))


if __name__ == "__main__":
    main()
