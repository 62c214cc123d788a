"""What every stage shares: help, logging, one-line errors, declared metrics."""

import functools
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import psutil
from tqdm import tqdm

from neuronrank.errors import NeuronrankError, ParamsError
from neuronrank.files import write_json
from neuronrank.locks import one_writer
from neuronrank.outputs import require_no_directory
from neuronrank.printing import told

InFile = click.Path(exists=True, dir_okay=False, path_type=Path)
InDirectory = click.Path(exists=True, file_okay=False, path_type=Path)
OutPath = click.Path(path_type=Path)

log = logging.getLogger("neuronrank")
Item = TypeVar("Item")
Metrics = dict[str, Any]
_DISTRIBUTED = ("collect", "eval")


def stage_command(name: str, *example: str) -> Callable[[Callable[..., Metrics]], click.Command]:
    """Make a click command of a function that does a stage's work and returns its metrics, or {} to write none.

    `example` is a command that runs, one option a line; it ends the help text.
    Adds `--params` and `--metrics`; the metrics gain `seconds` (the work), `process_seconds` (since the interpreter
    started) and `peak_rss_mib`. An error of ours ends the command with its message and exit code 1.
    """

    def decorate(work: Callable[..., Metrics]) -> click.Command:
        @functools.wraps(work)
        def run(metrics: Path, **options: Any) -> None:
            logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=f"{name}: %(message)s")
            logging.getLogger("httpx").setLevel(logging.WARNING)
            begin = time.perf_counter()
            try:
                if name not in _DISTRIBUTED and int(os.environ.get("WORLD_SIZE", "1")) > 1:
                    raise ParamsError(
                        f"{name} runs in one process; only {' and '.join(_DISTRIBUTED)} run under torchrun"
                    )
                with _only_writer(metrics, options):
                    measured = work(**options)
                    if measured:  # else another process writes them
                        write_json(metrics, {**measured, **_costs(begin)})
            except (NeuronrankError, OSError) as err:
                raise click.ClickException(told(err)) from err

        command = click.command(
            name,
            context_settings={
                "help_option_names": ["-h", "--help"],
                "token_normalize_func": lambda token: token.replace("_", "-"),
            },
            epilog="\b\nExample:\n  " + " \\\n    ".join(example),
        )(run)
        command.params += [
            click.Option(["--params"], type=InFile, default="params.yaml", show_default=True, help="Parameter file."),
            click.Option(["--metrics"], type=OutPath, required=True, help="Where to write the stage's metrics."),
        ]
        return command

    return decorate


@contextmanager
def _only_writer(metrics: Path, options: dict[str, Any]) -> Iterator[None]:
    """Hold every output of a stage from its start: another run is refused at once, and outputs never mix two runs."""
    if int(os.environ.get("RANK", "0")) > 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield  # the first process writes, and holds them
        return
    parameters = click.get_current_context().command.params
    outputs = [path for param in parameters if param.type is OutPath and (path := options.get(str(param.name)))]
    require_no_directory(metrics)
    with ExitStack() as held:
        for path in [*outputs, metrics]:
            held.enter_context(one_writer(path))
        yield


def _costs(begin: float) -> Metrics:
    work = time.perf_counter() - begin
    process = time.time() - psutil.Process().create_time()
    return {"seconds": round(work, 3), "process_seconds": round(process, 3), "peak_rss_mib": round(peak_rss_mib(), 1)}


def peak_rss_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux `getrusage` also counts what held the process before it became this program
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """Give a function that is called with how much was done; draws a bar on a terminal, else logs the end."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, leave=False) as bar:
            yield bar.update
        return
    yield lambda _n: None
    log.info("%s %d/%d", what, total, total)


def progress(items: Iterator[Item], total: int, what: str) -> Iterator[Item]:
    """Yield items behind a progress bar on a terminal, or with about ten log lines elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, leave=False)
        return
    every = max(1, total // 10)
    for done, item in enumerate(items, start=1):
        yield item
        if done % every == 0 or done == total:
            log.info("%s %d/%d", what, done, total)
