"""Single bytes changed in a model, statistics, scores and masks: `verify` must tell, no command go on with other ones.

The byte is drawn from a file drawn uniformly, by turns, or from all bytes of the artifact: most bytes lie in a few
large chunks, most kinds of bytes in small files. Of a model, which is not in a format of ours, those bytes are drawn
that its description is of: the description itself, the tokenizer, and the data of the weights.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result

from neuronrank.safetensors_header import read_safetensors_header
from trials.building import command_of
from trials.steps import STEPS, digest


@dataclass(frozen=True)
class Kind:
    """An artifact that is damaged, and the command that reads it."""

    name: str
    path: str
    reader: str
    out: str
    weights: str = ""
    """Where the weights lie that it describes."""


KINDS = (
    Kind("model", "artifacts/model", "export", "out/pruned", "source/model"),
    Kind("statistics", "artifacts/statistics", "score", "out/scores.safetensors"),
    Kind("scores", "artifacts/scores.safetensors", "prune", "out/mask.safetensors"),
    Kind("mask", "artifacts/mask.safetensors", "export", "out/pruned"),
)


@dataclass
class Found:
    """What the flips of one kind of artifact found."""

    flips: int = 0
    refused: int = 0
    """So many runs of the reading command ended with an error."""
    unharmed: int = 0
    """So many wrote what they write of the whole artifact: they did not read the byte."""
    failures: list[str] = field(default_factory=list)


def flip_trials(trials: int, seed: int) -> dict[str, dict[str, Any]]:
    """Change so many bytes, one at a time, of the kinds by turns; the project is in the current directory.

    Args:
        trials: of all kinds together.
        seed: of files, places and values.

    Returns:
        Kind -> the fields of `Found`.
    """
    drawn, found = random.Random(seed), {kind.name: Found() for kind in KINDS}
    wanted = {kind.name: _wanted(kind) for kind in KINDS}
    places = {kind.name: cycle((_of_any_file, _of_all_bytes)) for kind in KINDS}
    for number, kind in zip(range(trials), cycle(KINDS)):
        _trial(kind, wanted[kind.name], next(places[kind.name]), drawn, found[kind.name])
        if (number + 1) % 100 == 0:
            failures = sum(len(one.failures) for one in found.values())
            click.echo(f"{number + 1}/{trials}: {failures} failures", err=True)
    return {name: asdict(one) for name, one in found.items()}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["| artifact | bytes changed | reader refused | reader unharmed | result |", "|---|---|---|---|---|"]
    for name, one in found.items():
        result = "; ".join(one["failures"][:5]) or "all noticed"
        lines.append(f"| {name} | {one['flips']} | {one['refused']} | {one['unharmed']} | {result} |")
    return "\n".join(lines)


def _wanted(kind: Kind) -> str:
    """Return the digest of what the reading command writes of the whole artifact, which `verify` must accept."""
    done = _run(["verify", kind.path])
    assert done.exit_code == 0, done.output
    return _read(kind)[1]


def _trial(kind: Kind, wanted: str, place: Callable[..., tuple[Path, int]], drawn: random.Random, found: Found) -> None:
    path, at = place(_guarded(kind), drawn)
    whole = path.read_bytes()
    value = whole[at] ^ drawn.randrange(1, 256)
    where = f"{path} byte {at} of {len(whole)}: {whole[at]:#04x} -> {value:#04x}"
    path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    try:
        found.flips += 1
        verified = _run(["verify", kind.path])
        if not _has_faults(verified):
            found.failures.append(f"{where}: verify ended with {verified.exit_code}, {verified.exception!r}")
        done, written = _read(kind)
        if _is_refusal(done):
            found.refused += 1
        elif done.exit_code == 0 and written == wanted:
            found.unharmed += 1
        else:
            found.failures.append(f"{where}: {kind.reader} ended with {done.exit_code}, {done.exception!r}")
    finally:
        path.write_bytes(whole)


def _guarded(kind: Kind) -> dict[Path, range]:
    """Return file -> the places of the bytes whose change must be noticed."""
    found = sorted(path for path in (Path(kind.path), *Path(kind.path).rglob("*")) if path.is_file())
    places = {path: range(path.stat().st_size) for path in found}
    if kind.weights:
        for path in sorted(Path(kind.weights).glob("*.safetensors")):
            places[path] = range(read_safetensors_header(path)[1], path.stat().st_size)
        for path in sorted(Path(kind.weights).glob("tokenizer*")):
            places[path] = range(path.stat().st_size)
    return places


def _of_any_file(files: dict[Path, range], drawn: random.Random) -> tuple[Path, int]:
    path = drawn.choice([path for path, places in files.items() if places])
    return path, drawn.choice(files[path])


def _of_all_bytes(files: dict[Path, range], drawn: random.Random) -> tuple[Path, int]:
    (path,) = drawn.choices(list(files), [len(places) for places in files.values()])
    return path, drawn.choice(files[path])


def _read(kind: Kind) -> tuple[Result, str]:
    """Run the reading command into an empty `out/`; return its result and the digest of what it wrote."""
    shutil.rmtree("out", ignore_errors=True)
    Path("out").mkdir()
    step = next(step for step in STEPS if step.name == kind.reader)
    command, arguments = command_of(step)
    done = CliRunner().invoke(command, arguments)
    return done, digest(Path(kind.out))


def _run(arguments: list[str]) -> Result:
    from neuronrank.cli import main

    return CliRunner().invoke(main, arguments)


def _has_faults(verified: Result) -> bool:
    """Whether `verify` told of a fault, or of something that it could not read at all."""
    return verified.exit_code == 1 and isinstance(verified.exception, SystemExit) and "fault" in verified.output


def _is_refusal(done: Result) -> bool:
    """Whether a command ended with an error of ours, and not with one that nobody expected."""
    return done.exit_code == 1 and isinstance(done.exception, SystemExit) and "Error" in done.output
