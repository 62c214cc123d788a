"""Time every item in a process of its own, by turns, and print medians, ratios and peak memory.

Example: python -m benchmarks run --results docs/speed.json --document docs/SPEED.md
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click
from packaging.requirements import Requirement

PACKAGES = ("torch", "transformers", "numba", "zarr", "llmcompressor")
RATIOS = {
    "collect_wanda": ("forward", "calibration for Wanda alone"),
    "collect_default": ("forward", "calibration with all default statistics"),
    "prune": ("copy_weights", "one mask"),
    "evaluate": ("bare_evaluation", "evaluation of one text"),
    "llm_compressor_wanda": ("forward_beside", "llm-compressor, one-shot Wanda"),
}
"""Item -> what its seconds are divided by, and what it is."""
BESIDE = {"forward_beside": "forward", "llm_compressor_wanda": "llm_compressor_wanda"}
"""What is timed in llm-compressor's environment: name -> item. It needs another transformers than the project."""


@click.group()
def main() -> None:
    """Time what the stages cost."""


@main.command()
@click.argument("name")
@click.option("--windows", type=int, required=True)
def item(name: str, windows: int) -> None:
    """Time one item, and print seconds and peak memory as JSON."""
    from benchmarks.items import BESIDE_ITEMS, ITEMS
    from stages._command import peak_rss_mib

    work = (ITEMS | BESIDE_ITEMS)[name](windows)
    begin = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - begin
    peak = peak_rss_mib() / 1024
    versions = {package: version(package) for package in PACKAGES if find_spec(package)}
    measured = {"seconds": seconds, "peak_gib": peak, "versions": versions}
    click.echo(json.dumps({**measured, **(found if isinstance(found, dict) else {})}))


@main.command()
@click.option("--directory", type=click.Path(path_type=Path), required=True, help="Where 7 GB may be written.")
def large(directory: Path) -> None:
    """Collect from and prune a random bfloat16 model of 3.2 billion weights, and print the peak memory."""
    from benchmarks.large_model import measure

    click.echo(json.dumps(measure(directory, Path("artifacts/model"), Path("params.yaml")), indent=2))


@main.command()
@click.option("--windows", type=int, default=32, show_default=True, help="Calibration windows.")
@click.option("--repeats", type=int, default=3, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), required=True, help="JSON file, written after every turn.")
@click.option("--add", is_flag=True, help="Add turns to those of the results file, which must be of this environment.")
@click.option("--document", type=click.Path(exists=True, path_type=Path), help="Its marked table is replaced.")
@click.option(
    "--llm-compressor-python",
    type=click.Path(exists=True, dir_okay=False),
    help="Python of an environment with llm-compressor, which is then timed too, beside the forward pass there.",
)
def run(  # the options of a command
    windows: int, repeats: int, results: Path, add: bool, document: Path | None, llm_compressor_python: str | None
) -> None:
    """Time every item by turns."""
    from benchmarks.items import ITEMS
    from neuronrank.files import write_json
    from neuronrank.method_table import replace_table

    _require_own_environment()
    timed = {name: (sys.executable, name) for name in ITEMS}
    if llm_compressor_python:
        _require_importable(llm_compressor_python)
        timed |= {name: (llm_compressor_python, item) for name, item in BESIDE.items()}
    earlier = json.loads(results.read_text()) if add else None
    found: dict[str, Any] = earlier or {"items": {name: [] for name in timed}, "stolen_shares": []}
    for turn in range(repeats):
        before, runs = _processor_time(), {}
        for name, (python, timed_item) in timed.items():
            runs[name] = _measure(python, timed_item, windows)
            click.echo(f"{turn + 1}/{repeats} {name}: {runs[name]['seconds']:.3f} s", err=True)
        about = {"windows": windows, **_environment(), "versions": runs["forward"].pop("versions")}
        about["versions_beside"] = runs["forward_beside"].pop("versions") if llm_compressor_python else None
        if found.get("about", about) != about or found["items"].keys() != runs.keys():
            raise click.ClickException(f"{results}: measured {found.get('about')}, this turn {about}. Leave out --add")
        for name, measured in runs.items():
            found["items"][name].append({key: value for key, value in measured.items() if key != "versions"})
        found["stolen_shares"].append(_stolen_share(before, _processor_time()))
        found["about"] = about
        write_json(results, found)
    rendered = render(found)
    if document:
        replace_table(document, rendered, "make bench")
    click.echo(rendered)


def _require_own_environment() -> None:
    """Refuse packages that the project does not allow: what they cost would be reported as the project's."""
    for line in requires("neuronrank") or []:
        requirement = Requirement(line)
        if requirement.marker is None and version(requirement.name) not in requirement.specifier:
            raise click.ClickException(
                f"{requirement.name} is {version(requirement.name)}, the project needs {requirement}. Run: make setup"
            )


def _require_importable(python: str) -> None:
    """Refuse an environment that lacks what is timed in it, before a turn is spent on the rest."""
    done = _run(python, "-c", "import benchmarks.__main__, benchmarks.items, llmcompressor")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise click.ClickException(
            f"{python} cannot import what it is to time: {why}. Install that there, then run again"
        )


def _environment() -> dict[str, Any]:
    """Return what ratios depend on: the device, the processor's kind, and the number of threads."""
    import torch

    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    processor = f"{names[0] if names else platform.machine()} ({capability})"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"device": device, "processor": processor, "threads": torch.get_num_threads()}


def _measure(python: str, name: str, windows: int) -> dict[str, Any]:
    """Run one item in a process of its own."""
    done = _run(python, "-m", "benchmarks", "item", name, "--windows", str(windows))
    if done.returncode:
        raise click.ClickException(f"{name} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python with this tree's code, whichever it is."""
    paths = os.pathsep.join(str(Path(path).resolve()) for path in ("pipeline", "."))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([python, *arguments], capture_output=True, text=True, check=False, env=environment)


def _processor_time() -> list[int]:
    """Return what Linux counts of all processors' time, kind by kind; empty elsewhere."""
    path = Path("/proc/stat")
    return [int(word) for word in path.read_text().splitlines()[0].split()[1:9]] if path.exists() else []


def _stolen_share(before: list[int], after: list[int]) -> float | None:
    """Return the share of the time that the processors were wanted in which the host gave them to others."""
    if not before:
        return None
    spent = [later - earlier for earlier, later in zip(before, after, strict=True)]
    idle, waiting, stolen = spent[3], spent[4], spent[7]
    return stolen / max(1, sum(spent) - idle - waiting)


def _score_lines(items: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return how long the slowest recipes took to score."""
    runs = [run["by_recipe"] for run in items["score_slowest"]]
    seconds = sorted(((median(run[name] for run in runs), name) for name in runs[0]), reverse=True)
    slowest = ", ".join(f"`{name}` {value:.2f}" for value, name in seconds[:3])
    return ["", f"Seconds to score, the slowest three of {len(seconds)} recipes: {slowest}."]


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _beside_lines(versions: dict[str, str] | None) -> list[str]:
    if versions is None:
        return []
    return ["", f"llm-compressor and the forward pass beside it ran in an environment of its own: {_listed(versions)}."]


def _stolen_lines(shares: list[float | None]) -> list[str]:
    known = [share for share in shares if share is not None]
    if not known:
        return []
    return [
        "",
        f"In {max(known):.0%} of the time at most that its processors were wanted the host gave them to others.",
    ]


def _sweep_lines(items: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return what a sweep of recipes costs from one artifact, against calibrating and pruning for each."""
    n = items["sweep"][0]["recipes"]
    turns = zip(items["collect_default"], items["prune"], items["sweep"], strict=True)
    ratios = [
        (
            n * (c["seconds"] + p["seconds"]) / s["seconds"],
            n * (c["seconds"] + p["seconds"]) / (c["seconds"] + s["seconds"]),
        )
        for c, p, s in turns
    ]
    from_artifact, with_collect = (median(values) for values in zip(*ratios, strict=True))
    return [
        "",
        f"A sweep of {n} recipes, scored and pruned from one artifact, against {n} x (calibrate + prune): "
        f"{from_artifact:.1f} times as fast, {with_collect:.1f} times with the one collection counted.",
    ]


def render(found: dict[str, Any]) -> str:
    """Return the measurements as Markdown."""
    from benchmarks.items import ITEMS

    items = {name: found["items"][name] for name in (*ITEMS, *BESIDE) if name in found["items"]}
    lines = [
        "| | median s | least, most | ratio | peak GiB | artifact MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in items.items():
        seconds = [run["seconds"] for run in runs]
        base, about = RATIOS.get(name, (None, name.replace("_", " ")))
        # ratios within a turn: what slows the machine slows both
        ratio = (
            ""
            if base is None
            else (f"{median(s / b['seconds'] for s, b in zip(seconds, items[base], strict=True)):.2f} x {base}")
        )
        size = f"{runs[0]['artifact_mib']:.0f}" if "artifact_mib" in runs[0] else ""
        lines.append(
            f"| {about} | {median(seconds):.2f} | {min(seconds):.2f}, {max(seconds):.2f} | {ratio} | "
            f"{max(run['peak_gib'] for run in runs):.2f} | {size} |"
        )
    about = found["about"]
    device = f"{about['device']}, " if about["device"] else ""
    lines += [
        "",
        f"{about['windows']} windows of 512 tokens, turns: {len(found['stolen_shares'])}. {device}"
        f"{about['processor']}, {about['threads']} threads; {_listed(about['versions'])}.",
        *_beside_lines(about["versions_beside"]),
        *_stolen_lines(found["stolen_shares"]),
        *_score_lines(items),
        *_sweep_lines(items),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
