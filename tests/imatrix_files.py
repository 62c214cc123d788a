"""Importance matrices as llama.cpp writes them, by the `gguf` package's own writer."""

from pathlib import Path

import gguf
import numpy as np

KEYS = {"datasets": ["wiki.train.raw", "dialogue ä.txt"], "chunk_count": 3, "chunk_size": 512}


class PlainWriter(gguf.GGUFWriter):
    """Writes no architecture: an importance matrix has none."""

    def add_architecture(self) -> None:
        pass


def write_by_gguf(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix", **changes) -> Path:
    """Write tensors, (n_mat, n) or (n,), and the keys of an importance matrix; a key that is None is left out."""
    writer = PlainWriter(path, "none")
    keys = {**KEYS, **changes}
    writer.add_string("general.type", kind)
    if keys["datasets"] is not None:
        writer.add_array("imatrix.datasets", keys["datasets"])
    for name in ("chunk_count", "chunk_size"):
        if keys[name] is not None:
            writer.add_uint32(f"imatrix.{name}", keys[name])
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(name: str, sums, counts) -> dict[str, np.ndarray]:
    """The two tensors of one weight; of a single matrix without the axis of length 1, as ggml writes them."""
    sums, counts = np.asarray(sums, dtype=np.float32), np.asarray(counts, dtype=np.float32)
    if len(counts) == 1:
        return {f"{name}.in_sum2": sums.reshape(-1), f"{name}.counts": counts}
    return {f"{name}.in_sum2": sums, f"{name}.counts": counts[:, None]}


def read_by_gguf(path: Path) -> tuple[dict, dict[str, tuple[list[int], bytes]]]:
    """Return the keys, and of every tensor its axes in ggml's order and its bytes."""
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return keys, {tensor.name: (tensor.shape.tolist(), tensor.data.tobytes()) for tensor in reader.tensors}
