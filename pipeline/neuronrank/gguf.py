"""GGUF -> an ordinary Hugging Face directory, through transformers' own reader."""

import logging
import struct
from pathlib import Path

import torch

from neuronrank.errors import SourceError
from neuronrank.storage import explain_write_errors, set_usual_mode

log = logging.getLogger(__name__)


def convert_gguf(path: Path, out: Path, dtype: str) -> None:
    """Write the de-quantized weights, configuration and tokenizer of a GGUF file to the directory `out`.

    Raises:
        SourceError: not a GGUF file, or of an architecture that transformers cannot convert.
        StorageError: the disk refused a write.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise SourceError(f"{path}: starts with {magic!r}, a GGUF file starts with b'GGUF'. Fetch it again")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("converting %s to safetensors, once", path.name)
    folder, name = str(path.parent), path.name
    try:
        # `local_files_only` is written into the saved configuration; fixed, so that its bytes are the same offline.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=name, local_files_only=True, trust_remote_code=False
        )
        # Without `dequantize` the weights stay packed and cannot be saved.
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (ValueError, LookupError, OSError, RuntimeError, struct.error) as err:
        raise SourceError(f"{path}: transformers cannot convert it: {' '.join(str(err).split())}") from err
    if info["missing_keys"] or info["mismatched_keys"]:
        raise SourceError(f"{path}: lacks tensors of its architecture: {sorted(map(str, info['missing_keys']))[:3]}")
    with explain_write_errors(out):
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        for weights in out.glob("*.safetensors"):
            set_usual_mode(weights)
