"""Readers of files that someone tampered with: each reads what was written, or raises an error of ours.

None crashes, hangs, or takes much more memory than the file is long. Bytes changed anywhere are told by the seals; so
files are also changed and sealed anew, as a forger would, and what lies behind the seals must hold by itself.
"""

import copy
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuronrank import open_statistics
from neuronrank.checkpoint import Checkpoint
from neuronrank.errors import NeuronrankError
from neuronrank.files import HEADER_KEY, canonical_json, sha256_file
from neuronrank.inspecting import describe
from neuronrank.losses import read_losses
from neuronrank.mask_store import MaskFile
from neuronrank.recipes import read_recipe
from neuronrank.safetensors_header import METADATA
from neuronrank.score_store import read_scores
from neuronrank.scores import compute_factors
from neuronrank.seals import BLANK, FIELD, seal_tensor_file, sealed_text
from neuronrank.statistics_store import Statistics
from neuronrank.verifying import verify
from neuronrank.windows import read_windows
from tests.project import TFIDF, WANDA, Project

EXAMPLES = int(os.environ.get("NEURONRANK_FUZZ", "10"))
"""Of each test; `make fuzz` tries 200."""
_FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=timedelta(seconds=30),  # a reader that hangs
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
_TIMES, _FREE = 60, 24 << 20
"""Most memory that reading may take: so many times what the artifact holds, and as much as its libraries do."""


RECIPES = [
    read_recipe({"attention": WANDA, "mlp": WANDA}, "recipes.wanda"),
    read_recipe({"attention": {"method": "none"}, "mlp": TFIDF}, "recipes.tfidf"),
]


def masks_of(path: Path) -> dict[str, Any]:
    masks = MaskFile(path)
    kept = {weight: masks.keep(weight) for weight in masks.weights}
    for entry in masks.modules:
        masks.module_keep(entry)
    return kept


def statistics_of(path: Path) -> dict[str, Any]:
    statistics = Statistics(path)
    found = {name: statistics.read(name) for name in statistics.array_paths}
    return found | statistics.all_weight_sums()


def tensors_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: checkpoint.tensor(name) for name in checkpoint.names}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "scores": lambda path: read_scores(path)[0],
    "masks": masks_of,
    "losses": read_losses,
    "tokens": lambda path: {"token_ids": read_windows(path).token_ids},
    "weights": lambda path: tensors_of(Checkpoint(path.parent)),
    "statistics": statistics_of,
}


def path_of(project: Project, kind: str) -> Path:
    found = {
        "scores": project.scores("hybrid"),
        "masks": project.mask("wanda", "50pct"),
        "losses": project.artifacts / "losses/wanda/50pct.safetensors",
        "tokens": project.artifacts / "tokens/calibration/windows.safetensors",
        "statistics": project.statistics,
    }
    return found[kind]


FILES = ("scores", "masks", "losses", "tokens")


@pytest.fixture(scope="module")
def whole(finished_project, tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each kind: a copy to be changed, and what is read of it whole."""
    root, found = tmp_path_factory.mktemp("fuzzed"), {}
    for kind in (*FILES, "statistics"):
        source = path_of(finished_project, kind)
        target = root / kind / source.name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, _made(target))
        found[kind] = target, READERS[kind](target)
    return found


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


@contextmanager
def put_back(*paths: Path) -> Iterator[dict[Path, bytes]]:
    """Give the content of files that are about to be changed, and restore it."""
    before = {path: path.read_bytes() for path in paths}
    try:
        yield before
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def held(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def listed(path: Path) -> None:
    """List the arrays of statistics, and score every method that they can serve."""
    repr(open_statistics(path))
    for recipe in RECIPES:
        compute_factors(Statistics(path), recipe)


USES: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("scores", "losses", "tokens", "masks"), describe),
    "statistics": listed,
}


def read_or_refuse(kind: str, path: Path, expected: dict[str, Any] | None) -> None:
    """Read an artifact: what was written, or whatever a forger may state, or an error of ours; in little memory."""
    verify([path])  # tells faults, and ends with none of its own
    with suppress(NeuronrankError):
        USES.get(kind, bool)(path)
    limit = _TIMES * held(path) + _FREE
    tracemalloc.start()
    try:
        found = READERS[kind](path)
    except NeuronrankError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit, (peak, limit)
    if expected is not None:
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert np.array_equal(np.asarray(values), np.asarray(expected[name]), equal_nan=True), name


# Bytes.


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Return bytes with one or a few places changed, cut out, put in, or the end lost."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(("change", "remove", "insert", "truncate", "zero")))
        n = draw(st.integers(1, 64))
        if how == "change" and content:
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        elif how == "remove":
            content = content[:at] + content[at + n :]
        elif how == "insert":
            content = content[:at] + draw(st.binary(min_size=1, max_size=64)) + content[at:]
        elif how == "truncate":
            content = content[:at]
        else:
            content = content[:at] + b"\0" * len(content[at : at + n]) + content[at + n :]
    return content


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
@_FUZZ
def test_bytes_of_a_file_are_changed(kind, whole, data):
    path, expected = whole[kind]
    with put_back(path) as before:
        path.write_bytes(data.draw(damaged(before[path])))
        read_or_refuse(kind, path, expected)


@given(data=st.data())
@_FUZZ
def test_bytes_of_statistics_are_changed(whole, data):
    root, expected = whole["statistics"]
    path = data.draw(st.sampled_from(sorted(file for file in root.rglob("*") if file.is_file())))
    with put_back(path) as before:
        path.write_bytes(data.draw(damaged(before[path])))
        read_or_refuse("statistics", root, expected)


@given(data=st.data())
@_FUZZ
def test_bytes_of_weights_are_changed(tiny_model, tmp_path_factory, data):
    source = sorted(tiny_model.glob("model-*.safetensors"))[0]
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    path.write_bytes(data.draw(damaged(source.read_bytes())))  # no seal: any weights may be read, or refused
    read_or_refuse("weights", path, None)


# Headers, sealed anew.

HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((-1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**63))),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(("", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "float64", "U8", "BF16", "0" * 64)),
    st.lists(st.integers(-2, 2**40), max_size=4),
    st.just({}),
    st.just([[[[[]]]]]),
    st.just({"": {"": None}}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where something can be put in a JSON value."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if key != FIELD:
            found += places(child, (*path, key))
    return found


@st.composite
def forged(draw: Any, value: Any) -> Any:
    """Return a JSON value with some parts replaced, removed or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        found = places(value)
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        parent = value
        for key in above:
            parent = parent[key]
        how = draw(st.sampled_from(("replace", "replace", "remove", "double")))
        if how == "remove":
            del parent[last]
        elif how == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        elif how == "double":
            parent[draw(st.text(max_size=8))] = copy.deepcopy(parent[last])
        else:
            parent[last] = copy.deepcopy(draw(HOSTILE))  # a constant would be changed by the next change
    return value


def parsed(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return a safetensors file's entries, our header in it, and its data."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    return entries, json.loads(entries[METADATA][HEADER_KEY]), content[8 + length :]


def write_forged(path: Path, entries: Any, header: Any, data: bytes) -> None:
    """Write a safetensors file and, where there is a place for it, its seal."""
    if isinstance(entries, dict) and isinstance(header, dict):
        entries = {**entries, METADATA: {HEADER_KEY: json.dumps({**header, FIELD: BLANK})}}
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    try:
        seal_tensor_file(path)
    except ValueError:
        return


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("part", ["header", "entries"])
@given(data=st.data())
@_FUZZ
def test_a_header_is_forged_and_sealed(kind, part, whole, data):
    path, _ = whole[kind]
    entries, header, values = parsed(path.read_bytes())
    if part == "header":
        header = data.draw(forged(header))
    else:
        entries = data.draw(forged({name: entry for name, entry in entries.items() if name != METADATA}))
    with put_back(path):
        write_forged(path, entries, header, values)
        read_or_refuse(kind, path, None)


@given(data=st.data())
@_FUZZ
def test_a_manifest_is_forged_and_sealed(whole, data):
    root, _ = whole["statistics"]
    path = root / "manifest.json"
    with put_back(path) as before:
        value = data.draw(forged(json.loads(before[path])))
        path.write_text(sealed_text(canonical_json({**value, FIELD: BLANK})))
        read_or_refuse("statistics", root, None)


@given(data=st.data())
@_FUZZ
def test_a_chunk_is_forged_and_listed(whole, data):
    root, _ = whole["statistics"]
    manifest = root / "manifest.json"
    chunk = data.draw(st.sampled_from(sorted(path for path in (root / "taps.zarr").rglob("c/**/*") if path.is_file())))
    with put_back(manifest, chunk) as before:
        chunk.write_bytes(data.draw(damaged(before[chunk])))
        stated = json.loads(before[manifest])
        entry = {"bytes": chunk.stat().st_size, "sha256": sha256_file(chunk)}
        stated["files"][chunk.relative_to(root).as_posix()] = entry
        manifest.write_text(sealed_text(canonical_json({**stated, FIELD: BLANK})))
        read_or_refuse("statistics", root, None)


@given(data=st.data())
@_FUZZ
def test_what_an_array_says_of_itself_is_forged_listed_and_sealed(whole, data):
    root, _ = whole["statistics"]
    manifest = root / "manifest.json"
    described = data.draw(st.sampled_from(sorted((root / "taps.zarr").rglob("zarr.json"))))
    with put_back(manifest, described) as before:
        described.write_text(json.dumps(data.draw(forged(json.loads(before[described])))))
        stated = json.loads(before[manifest])
        entry = {"bytes": described.stat().st_size, "sha256": sha256_file(described)}
        stated["files"][described.relative_to(root).as_posix()] = entry
        manifest.write_text(sealed_text(canonical_json({**stated, FIELD: BLANK})))
        read_or_refuse("statistics", root, None)
