"""Importance matrices as files: against the `gguf` package in both directions, and damaged or hostile files."""

import resource
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from neuronrank.errors import NeuronrankError, NotFiniteError, SourceError
from neuronrank.gguf_container import open_container, write_container
from neuronrank.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from tests.imatrix_files import KEYS, pair, read_by_gguf, write_by_gguf

Q, GATES = "blk.0.attn_q.weight", "blk.0.ffn_gate_exps.weight"
SUMS = [[1.25, 0.0, 3e-30], [7.5, 1e30, 2.0]]
TENSORS = {**pair(Q, [[0.1, 2.5, 1e-3, 4.0]], [9]), **pair(GATES, SUMS, [3, 16777216])}


def test_what_the_gguf_package_wrote_is_read(tmp_path):
    others = {f"{Q}.in_sum": np.ones(4, np.float32), f"{Q}.stats": np.full(12, np.nan, np.float32)}
    found = read_imatrix(write_by_gguf(tmp_path / "a.gguf", {**TENSORS, **others}))
    assert (found.datasets, found.chunk_count, found.chunk_size) == (tuple(KEYS["datasets"]), 3, 512)
    assert found.other_tensors == (f"{Q}.in_sum", f"{Q}.stats")
    assert found.entries.keys() == {Q, GATES}
    assert found.entries[Q].sums.tobytes() == np.array([[0.1, 2.5, 1e-3, 4.0]], np.float32).tobytes()
    assert found.entries[Q].sums.shape == (1, 4)
    assert found.entries[GATES].sums.tobytes() == np.array(SUMS, np.float32).tobytes()
    assert found.entries[GATES].counts.tolist() == [3, 16777216]


def test_what_is_written_the_gguf_package_reads(tmp_path):
    entries = {
        GATES: Entry(np.array(SUMS, np.float32), np.array([3, 16777216])),
        Q: Entry(np.array([[0.1, 2.5, 1e-3, 4.0]], np.float32), np.array([9])),
    }
    write_imatrix(tmp_path / "ours.gguf", Imatrix(entries, tuple(KEYS["datasets"]), 3, 512))
    keys, tensors = read_by_gguf(tmp_path / "ours.gguf")
    assert keys == {"general.type": "imatrix", **{f"imatrix.{key}": value for key, value in KEYS.items()}}
    assert list(tensors) == [f"{name}.{kind}" for name in (Q, GATES) for kind in ("in_sum2", "counts")]
    assert {name: axes for name, (axes, _) in tensors.items()} == {
        f"{Q}.in_sum2": [4],  # ggml leaves out a slowest axis of length 1
        f"{Q}.counts": [1],
        f"{GATES}.in_sum2": [3, 2],
        f"{GATES}.counts": [1, 2],
    }
    for name, (_, content) in tensors.items():
        assert content == TENSORS[name].astype(np.float32).tobytes(), name


def test_both_writers_give_the_same_bytes(tmp_path):
    theirs = write_by_gguf(tmp_path / "theirs.gguf", TENSORS)
    write_imatrix(tmp_path / "ours.gguf", read_imatrix(theirs))
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()


def test_no_dataset_comes_back_as_none(tmp_path):
    entries = {Q: Entry(np.ones((1, 2), np.float32), np.array([1]))}
    write_imatrix(tmp_path / "a.gguf", Imatrix(entries, (), 1, 1))
    assert read_imatrix(tmp_path / "a.gguf").datasets == ()


REFUSED = {
    "of a model": ({}, {"kind": "model"}, SourceError, "general.type is 'model'"),
    "no chunk size": ({}, {"chunk_size": None}, SourceError, "imatrix.chunk_size is None, expected a uint32"),
    "no datasets": ({}, {"datasets": None}, SourceError, "imatrix.datasets is None, expected a list"),
    "numbers as datasets": ({}, {"datasets": [1, 2]}, SourceError, "imatrix.datasets is None, expected a list"),
    "no counts": ({f"{Q}.counts": None}, {}, SourceError, f"has no tensor '{Q}.counts'"),
    "no sums": ({f"{Q}.in_sum2": None}, {}, SourceError, f"has no tensor '{Q}.in_sum2'"),
    "NaN": (pair(Q, [[1, np.nan, 2, np.nan]], [9]), {}, NotFiniteError, f"{Q}: 2 of 4 sums of squares are NaN"),
    "infinite": (pair(Q, [[np.inf, 1]], [9]), {}, NotFiniteError, "1 of 2 sums of squares are NaN or infinite"),
    "negative": (pair(Q, [[1, -2.5]], [9]), {}, SourceError, "a sum of squares is -2.5, which is negative"),
    "negative count": (pair(Q, [[1, 2]], [-1]), {}, SourceError, r"counts \[-1.0\] are no numbers of tokens"),
    "broken count": (pair(Q, [[1, 2]], [2.5]), {}, SourceError, r"counts \[2.5\] are no numbers of tokens"),
    "NaN count": (pair(Q, [[1, 2]], [np.nan]), {}, NotFiniteError, "are no numbers of tokens"),
    "large count": (pair(Q, [[1, 2]], [2**31]), {}, SourceError, "from 0 to 2147483647"),
    "sums of no token": (pair(GATES, [[1], [2]], [0, 3]), {}, SourceError, r"counts\[0\] is 0, but its sums are not"),
    "other experts": (
        {f"{GATES}.counts": np.ones((3, 1), np.float32)},
        {},
        SourceError,
        r"sums have shape \(2, 3\) and counts \(3, 1\)",
    ),
    "flat counts": ({f"{GATES}.counts": np.ones(2, np.float32)}, {}, SourceError, r"counts \(2,\); expected"),
    "float16": ({f"{Q}.in_sum2": np.ones(4, np.float16)}, {}, SourceError, r"has type 1, expected 0 \(F32\)"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_is_refused(tmp_path, fault):
    tensors, keys, error, message = REFUSED[fault]
    every = {name: values for name, values in {**TENSORS, **tensors}.items() if values is not None}
    path = write_by_gguf(tmp_path / "bad.gguf", every, **keys)
    with pytest.raises(error, match=message) as caught:
        read_imatrix(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "stated", [{"model_fingerprint": "a" * 64}, {"model_fingerprint": "a" * 64, "statistics": "b"}]
)
def test_what_it_was_exported_from_is_two_digests_or_nothing(tmp_path, stated):
    entries = {Q: Entry(np.ones((1, 2), np.float32), np.array([1]))}
    write_imatrix(tmp_path / "a.gguf", Imatrix(entries, (), 1, 1, made_from={"model": "a" * 64, "exported": "b" * 64}))
    keys, _ = read_by_gguf(tmp_path / "a.gguf")
    assert {key: one for key, one in keys.items() if key.startswith("neuronrank.")} == {
        "neuronrank.model_fingerprint": "a" * 64,
        "neuronrank.statistics": "b" * 64,
    }
    assert read_imatrix(tmp_path / "a.gguf").made_from == {"model": "a" * 64, "exported": "b" * 64}
    values = {f"neuronrank.{key}": value for key, value in stated.items()}
    tensors = {name: np.float32(values) for name, values in TENSORS.items()}
    write_container(tmp_path / "b.gguf", {**VALUES, **values}, tensors)
    with pytest.raises(SourceError, match="expected two SHA-256, or neither key"):
        read_imatrix(tmp_path / "b.gguf")


VALUES = {
    "general.type": "imatrix",
    "imatrix.datasets": ["a"],
    "imatrix.chunk_count": 1,
    "imatrix.chunk_size": 1,
}


def test_a_file_without_sums_is_refused(tmp_path):
    path = write_by_gguf(tmp_path / "empty.gguf", {"blk.0.attn_q.weight": np.ones(4, np.float32)})
    with pytest.raises(SourceError, match=r"holds no tensor <weight>.in_sum2"):
        read_imatrix(path)


def test_the_older_format_is_refused_with_the_command_that_converts_it(tmp_path):
    name = Q.encode()
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii3f", 3, 3, 1, 2, 3)
    (tmp_path / "old.dat").write_bytes(struct.pack("<i", 1) + entry + struct.pack("<ii", 3, 0))
    with pytest.raises(SourceError, match=r"llama-imatrix --model any\.gguf --in-file old\.dat -o converted\.gguf"):
        read_imatrix(tmp_path / "old.dat")
    (tmp_path / "nothing").write_bytes(b"")
    with pytest.raises(SourceError, match="starts with b''"):
        read_imatrix(tmp_path / "nothing")
    with pytest.raises(SourceError, match="cannot be read"):
        read_imatrix(tmp_path / "missing")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(n_tensors: int, n_values: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + rest


HUGE = 2**60
HOSTILE = {
    "tensors": header(HUGE, 0),
    "values": header(0, HUGE),
    "values of a large file": header(0, 2**21, b"\0" * (13 * 2**21)),
    "a key": header(0, 1, struct.pack("<Q", 2**63) + b"x" * 20),
    "a text": header(0, 1, text("k") + struct.pack("<IQ", 8, HUGE) + b"x" * 20),
    "texts": header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, HUGE) + b"x" * 20),
    "numbers": header(0, 1, text("k") + struct.pack("<IIQ", 9, 0, HUGE) + b"x" * 20),
    "lists of lists": header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1) + b"x" * 20),
    "unknown type": header(0, 1, text("k") + struct.pack("<I", 77) + b"x" * 20),
    "axes": header(1, 0, text("t") + struct.pack("<I", 2**31) + b"x" * 60),
    "an axis": header(1, 0, text("a.in_sum2") + struct.pack("<IQIQ", 1, 2**62, 0, 0) + b"x" * 60),
    "axes together": header(1, 0, text("a.in_sum2") + struct.pack("<I4QIQ", 4, *[2**40] * 4, 0, 0) + b"x" * 60),
    "empty axis": header(1, 0, text("a.in_sum2") + struct.pack("<IQIQ", 1, 0, 0, 0) + b"x" * 60),
    "offset": header(1, 0, text("a.in_sum2") + struct.pack("<IQIQ", 1, 1, 0, 2**63) + b"x" * 60),
    "alignment": header(0, 1, text("general.alignment") + struct.pack("<II", 4, 3)),
    "alignment of 0": header(0, 1, text("general.alignment") + struct.pack("<II", 4, 0)),
    "twice the key": header(0, 2, 2 * (text("k") + struct.pack("<II", 4, 3))),
    "twice the tensor": header(2, 0, 2 * (text("a.in_sum2") + struct.pack("<IQIQ", 1, 1, 0, 0))),
    "a long name": header(1, 0, text("n" * 64) + struct.pack("<IQIQ", 1, 1, 0, 0) + b"x" * 60),
    "a name that steers a terminal": header(
        1, 0, text("\x1b[2J.in_sum2") + struct.pack("<IQIQ", 1, 1, 0, 0) + b"x" * 60
    ),
    "a long key": header(0, 1, text("k" * 65536) + struct.pack("<II", 4, 3)),
    "not UTF-8": header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 3)),
    "version 1": header(0, 0, version=1),
    "big-endian": header(0, 0, version=3 << 24),
}


@pytest.mark.parametrize("promise", HOSTILE)
def test_a_header_that_promises_too_much_is_refused_at_once(tmp_path, promise):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[promise])
    with bounded(seconds=1, mebibytes=1), pytest.raises(SourceError, match=r"hostile\.gguf"):
        read_imatrix(path)


def test_tensors_that_overlap_cannot_take_more_memory_than_the_file(tmp_path):
    n = 2**18
    entries = b"".join(text(f"{number}.in_sum2") + struct.pack("<IQIQ", 1, n, 0, 0) for number in range(1000))
    values = text("general.type") + struct.pack("<I", 8) + text("imatrix")
    values += text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 0)
    path = tmp_path / "overlap.gguf"
    path.write_bytes(header(1000, 2, values + entries) + b"\0" * (4 * n + 32))
    with bounded(seconds=2, mebibytes=4), pytest.raises(SourceError, match="its tensors overlap"):
        read_imatrix(path)


class bounded:  # noqa: N801
    """Time, and memory that Python and numpy allocate, of what runs inside."""

    def __init__(self, seconds: float, mebibytes: float) -> None:
        self.seconds, self.bytes = seconds, mebibytes * 2**20

    def __enter__(self) -> None:
        tracemalloc.start()
        self.began = time.process_time()

    def __exit__(self, *_) -> None:
        taken, (_, peak) = time.process_time() - self.began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken < self.seconds
        assert peak < self.bytes


def test_every_length_of_a_file_that_was_cut_short_is_refused(tmp_path):
    whole = write_by_gguf(tmp_path / "whole.gguf", TENSORS).read_bytes()
    last = len(read_by_gguf(tmp_path / "whole.gguf")[1][f"{GATES}.counts"][1])  # before padding
    ends = -(-last // 32) * 32 - last
    for length in range(len(whole) - ends):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(NeuronrankError, match=r"cut\.gguf"):
            read_imatrix(tmp_path / "cut.gguf")


def test_a_damaged_file_is_read_or_refused_in_little_time_and_memory(tmp_path):
    whole = bytearray(write_by_gguf(tmp_path / "whole.gguf", TENSORS).read_bytes())
    drawn, n_read, path = np.random.default_rng(7), 0, tmp_path / "damaged.gguf"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(600):
        damaged = bytearray(whole)
        for place in drawn.integers(0, len(whole), drawn.integers(1, 4)):
            damaged[place] = drawn.choice([damaged[place] ^ (1 << drawn.integers(8)), 0, 255])
        path.write_bytes(damaged)
        with bounded(seconds=0.5, mebibytes=1):
            n_read += sound(path)
    assert 0 < n_read < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def sound(path: Path) -> bool:
    """Say whether a file is read; anything but an error of ours that names it is a fault."""
    try:
        found = read_imatrix(path)
    except NeuronrankError as err:
        if str(path) not in str(err):
            raise AssertionError(f"does not name the file: {err}") from err
        return False
    assert all(np.isfinite(entry.sums).all() and (entry.counts >= 0).all() for entry in found.entries.values())
    return True


def test_a_container_of_other_values_is_read(tmp_path):
    values = text("a") + struct.pack("<IIQ3H", 9, 2, 3, 1, 2, 3) + text("b") + struct.pack("<Id", 12, 0.5)
    (tmp_path / "a.gguf").write_bytes(header(0, 2, values, version=2))
    assert open_container(tmp_path / "a.gguf").values == {"a": None, "b": 0.5}
