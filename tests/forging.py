"""Small statistics, and how somebody would change an artifact who wants it to be believed."""

import hashlib
from pathlib import Path

import numpy as np

from neuronrank.files import read_json, write_sealed_json
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors
from neuronrank.statistics_store import Statistics
from neuronrank.verifying import verify
from tests.artifacts import module, statistics

RECIPE = read_recipe({"attention": {"method": "none"}, "mlp": {"method": "wanda"}}, "recipes.test")


def faults(*paths: Path) -> list[str]:
    return [finding.line() for finding in verify(paths) if finding.is_fault]


def small_statistics(directory: Path) -> Path:
    """Write statistics of one layer of two modules, over three documents."""
    modules = [
        module("gate", "mlp", (3, 2), "mlp_in", "neuron", "row"),
        module("down", "mlp", (2, 3), "mlp_mid", "neuron", "column"),
    ]
    sums = {
        (tap, name): [[first + channel + document for channel in range(n)] for document in range(3)]
        for tap, n, first in (("mlp_in", 2, 1.0), ("mlp_mid", 3, 2.0), ("neuron", 3, 3.0))
        for name in ("sum_sq", "sum_abs")
    }
    vectors = {
        f"{entry['name']}.{axis}_{name}": np.ones(entry["shape"][axis == "column"])
        for entry in modules
        for axis in ("row", "column")
        for name in ("sum_abs", "sum_sq", "max_abs")
    }
    statistics(directory, sums, modules, vectors)
    return directory / "artifact"


def read_all(directory: Path) -> None:
    """Score, and read every array that there is."""
    opened = Statistics(directory)
    compute_factors(opened, RECIPE)
    for path in opened.array_paths:
        opened.read(path)
    opened.all_weight_sums()


def reseal(directory: Path, change) -> None:
    """Change a manifest as somebody would who wants it to be believed."""
    manifest = read_json(directory / "manifest.json", "x")
    change(manifest)
    write_sealed_json(directory / "manifest.json", manifest)


def relist(directory: Path, name: str) -> None:
    """Let the manifest list a file as it is now."""
    content = (directory / name).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    reseal(directory, lambda manifest: manifest["files"].update({name: entry}))
