"""How the commands print texts that others wrote: names, settings and messages steer no terminal."""

from collections.abc import Iterable

import click

from neuronrank.errors import NeuronrankError


def printable(text: str) -> str:
    r"""Return a text with every character that is not printable as its escape: `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def printable_lines(text: str) -> str:
    """Return the same of every line; what separates lines is kept, but for carriage returns and the like."""
    return "\n".join(map(printable, text.split("\n")))


def told(err: NeuronrankError | OSError) -> str:
    """Return an error as commands print it.

    Raises:
        OSError: one of no file, which nobody can mend who does not see where it came from.
    """
    if not isinstance(err, OSError):
        return printable_lines("\n".join([str(err), *getattr(err, "__notes__", [])]))
    if err.filename is None:
        raise err
    names = " -> ".join(str(name) for name in (err.filename, err.filename2) if name is not None)
    return printable_lines(f"{names}: {err.strerror}")


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines; a text inside one that holds a line break does not begin another."""
    click.echo("\n".join(map(printable, lines)))


def echo_json(text: str) -> None:
    r"""Print JSON whose values stay the same: what is not printable stands in strings alone, and as `\u001b` there."""
    shown = (one if one == "\n" or one.isprintable() else _json_escape(one) for one in text)
    click.echo("".join(shown), nl=False)


def _json_escape(one: str) -> str:
    units = one.encode("utf-16-be", "surrogatepass")  # JSON escapes what is beyond 16 bits as two
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
