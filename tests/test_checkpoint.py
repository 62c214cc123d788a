"""Tensors of safetensors shards, as the library of that format reads them."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuronrank.checkpoint import Checkpoint
from neuronrank.errors import MismatchError, SourceError

TENSORS = {
    "matrix": torch.tensor([[1.5, -2.0, 0.25], [3.0, 0.0, -7.0]]).bfloat16(),
    "half": torch.tensor([6.5e4, -6e-8]).half(),
    "double": torch.tensor([[1 / 3]], dtype=torch.float64),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "positions": torch.arange(4),
}


@pytest.fixture
def shard(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_tensors_are_those_that_the_formats_own_library_reads(shard):
    checkpoint = Checkpoint(shard.parent)
    assert checkpoint.names == sorted(TENSORS)
    for name, expected in load_file(shard).items():
        found = checkpoint.tensor(name)
        assert (found.dtype, found.shape, checkpoint.shape(name)) == (expected.dtype, expected.shape, expected.shape)
        assert torch.equal(found.double(), expected.double()), name


def test_data_that_begin_at_an_odd_byte_are_read(shard):
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    header += b" " * (1 + len(header) % 2)  # 8 and an odd number of bytes
    shard.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    checkpoint = Checkpoint(shard.parent)
    for name, expected in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name).double(), expected.double()), name


def test_what_is_written_to_a_tensor_stays_in_memory(shard):
    before = shard.read_bytes()
    Checkpoint(shard.parent).tensor("matrix").zero_()
    assert shard.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_no_file_stays_open_for_a_tensor(shard):
    checkpoint, opened = Checkpoint(shard.parent), Path("/proc/self/fd")
    before = len(list(opened.iterdir()))
    held = [checkpoint.tensor("matrix") for _ in range(300)]  # a layer of a large mixture has as many
    assert len(list(opened.iterdir())) == before
    assert all(torch.equal(tensor, TENSORS["matrix"]) for tensor in held)


def test_what_is_no_sound_shard_is_refused_by_name(shard):
    checkpoint, whole = Checkpoint(shard.parent), shard.read_bytes()
    last = max(TENSORS, key=lambda name: checkpoint._stored[name][1]["data_offsets"][1])
    shard.write_bytes(whole[:-1])
    with pytest.raises(SourceError, match=r"model\.safetensors: not a readable safetensors file"):
        checkpoint.tensor(last)
    with pytest.raises(SourceError, match=r"model\.safetensors: not a readable safetensors file"):
        Checkpoint(shard.parent)
    shard.unlink()
    with pytest.raises(SourceError, match=r"model\.safetensors: missing"):
        checkpoint.tensor(last)


def test_a_type_or_a_name_that_is_unknown_is_refused(tmp_path):
    save_file({"counts": torch.tensor([1, 2], dtype=torch.uint16)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="counts: is stored as U16; supported are BF16, F16, F32, F64,"):
        Checkpoint(tmp_path).tensor("counts")
    with pytest.raises(MismatchError, match="has no tensor 'other'"):
        Checkpoint(tmp_path).tensor("other")
