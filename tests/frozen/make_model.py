"""Write the frozen model, what was made with it, and its export: python -m tests.frozen.make_model DIRECTORY.

The directory must not exist. The model is a decoder of one layer whose weights are all stated here.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from neuronrank.checkpoint import describe_model, open_model
from neuronrank.export import export_model
from neuronrank.files import write_sealed_json
from neuronrank.losses import write_losses
from neuronrank.mask_store import MaskFile, pack, write_masks
from neuronrank.windows import read_windows, write_windows

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
    "tie_word_embeddings": True,
}
SHAPES = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.self_attn.k_proj.weight": (2, 4),
    "model.layers.0.self_attn.v_proj.weight": (2, 4),
    "model.layers.0.self_attn.o_proj.weight": (4, 4),
    "model.layers.0.mlp.gate_proj.weight": (6, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 6),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.0.post_attention_layernorm.weight": (4,),
    "model.norm.weight": (4,),
}
"""Every tensor counts 1, 2, 3, … in eighths."""
PRUNED = "model.layers.0.mlp.down_proj"
TOKEN_IDS = [[0, 1, 2], [5, 6, 7]]
LOSSES = [1.0, 3.0]
WORDS = ("<unk>", "a", "b", "c", "d", "e", "f", "g")


def make(out: Path) -> None:
    """Write `model/`, `windows.safetensors`, `losses.safetensors`, `mask.safetensors` and `export/`."""
    (out / "model").mkdir(parents=True)
    tensors = {
        name: (torch.arange(1, torch.Size(shape).numel() + 1).float() / 8).view(shape) for name, shape in SHAPES.items()
    }
    save_file(tensors, out / "model/model.safetensors", metadata={"format": "pt"})
    (out / "model/config.json").write_text(json.dumps(CONFIG, indent=2))
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(out / "model/tokenizer.json"))
    write_sealed_json(out / "model/model.json", describe_model(out / "model", {"source": "frozen"}, {}))
    model = open_model(out / "model")

    text = {"tokenizer_sha256": model.tokenizer_sha256, "window_tokens": 3, "source": {"source": "frozen"}}
    write_windows(out / "windows.safetensors", np.array(TOKEN_IDS, dtype=np.int32), text)
    windows = read_windows(out / "windows.safetensors")
    stated = {"n_windows": 2, "window_tokens": 3, "source": {"source": "frozen"}, "sha256": windows.sha256}
    made = {"made_from": {"model": model.fingerprint}, "model": {"fingerprint": model.fingerprint}}
    how = {"dtype": "float32", "device": "cpu", "texts": {"frozen": stated}}
    write_losses(out / "losses.safetensors", {"frozen": np.array(LOSSES)}, {**made, **how})

    keep = np.ones((4, 6), dtype=np.bool_)
    keep[1, 2] = keep[3, 5] = False
    entry = {"name": PRUNED, "weight": f"{PRUNED}.weight", "rows": None, "transposed": False, "part": "mlp", "layer": 0}
    details = {
        "recipe": "by_hand",
        "parts": {},
        "n_layers": 1,
        "calibration": {},
        "collect": {},
        "pattern": {"name": "two", "rule": "unstructured", "sparsity": 2 / 24},
        "modules": [{**entry, "shape": [4, 6], "n_removed": 2}],
        "shapes": {f"{PRUNED}.weight": [4, 6]},
        "sparsity": {"selected": 2 / 24, "linears": 2 / 120, "model": 2 / 164},
        "untied": {},
    }
    write_masks(out / "mask.safetensors", {f"{PRUNED}.weight": pack(keep)}, {**details, **made})
    export_model(model, MaskFile(out / "mask.safetensors"), out / "export")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:  # whole or not at all
        make(Path(scratch) / "made")
        Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
        (Path(scratch) / "made").rename(sys.argv[1])
