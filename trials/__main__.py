"""The trials' command line.

Examples: python -m trials kills --seed 0; python -m trials flips --trials 2000
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

import click

from trials import flips as flipping
from trials.building import built
from trials.kills import faults, kill_trials, table
from trials.steps import STEPS


@click.group()
def main() -> None:
    """Try what no test can try often enough."""


@main.command()
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=5 * len(STEPS),
    show_default=True,
    help="How many kills, by turns of the steps.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments.")
@click.option("--only", multiple=True, type=click.Choice([step.name for step in STEPS]), help="Only these steps.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file to write.")
def kills(trials: int, seed: int, only: tuple[str, ...], results: Path | None) -> None:
    """Kill every stage and command at random moments and hold what is left, and what the next run makes of it.

    Ends with exit code 1 on any failure, and when a step was never killed while it wrote.
    """
    logging.basicConfig(level=logging.WARNING)  # the steps' own lines would hide the trials'
    steps = [step for step in STEPS if not only or step.name in only]
    with tempfile.TemporaryDirectory() as folder, built(Path(folder)):
        found = kill_trials(Path(folder), steps, trials, seed)
    if results:
        results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    click.echo(table(found))
    sys.exit(any(faults(step) for step in found.values()))


@main.command()
@click.option(
    "--trials", type=click.IntRange(1), default=2000, show_default=True, help="How many bytes, one at a time."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of files, places and values.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file to write.")
def flips(trials: int, seed: int, results: Path | None) -> None:
    """Change single bytes of every kind of artifact of ours; hold that each is noticed.

    Ends with exit code 1 on any failure, and when a kind was never changed, or never refused by its reader.
    """
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, built(Path(folder)):
        found = flipping.flip_trials(trials, seed)
    if results:
        results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    click.echo(flipping.table(found))
    sys.exit(any(flipping.faults(title, one) for title, one in found.items()))


if __name__ == "__main__":
    main()
