"""A model's shape and how much is collected of it: widths of taps, shapes of modules, bytes of weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronrank import registry
from neuronrank.errors import SourceError, UnknownName
from neuronrank.files import read_json
from neuronrank.planned_arrays import Shape


@dataclass(frozen=True)
class Sizes:
    """A model's shape, and how much is collected of it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    windows: int
    window_tokens: int
    classes: int
    micro_topics: int
    gram: bool = False
    tied: bool = False
    """Whether the output head is the embeddings."""
    architecture: str = "llama"
    experts: int = 0
    """Of every layer; `intermediate` is then the width of each."""

    @property
    def tap_width(self) -> dict[str, int]:
        """Tap -> channels."""
        heads, kv_heads = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            **dict.fromkeys(("attn_in", "mlp_in"), self.hidden),
            **dict.fromkeys(("q_out", "attn_ctx"), heads),
            **dict.fromkeys(("k_out", "v_out"), kv_heads),
            **dict.fromkeys(("neuron", "gate_pre", "mlp_mid"), self.intermediate),
        }

    @property
    def module_shapes(self) -> list[tuple[int, int]]:
        """(O, I) of every linear module of one layer.

        Raises:
            UnknownName: no layout for this architecture.
        """
        layout = registry.load("models", self.architecture).LAYOUT
        return [
            (
                self.tap_width[linear.neuron_tap] if linear.neuron_axis == "row" else self.hidden,
                self.tap_width[linear.input_tap],
            )
            for linear in layout.linears
            for _ in range(self.experts if linear.in_expert else 1)
        ]

    @property
    def shape(self) -> Shape:
        """What is collected of it.

        Raises:
            UnknownName: no layout for this architecture.
        """
        return Shape(
            self.layers,
            self.tap_width,
            tuple(self.module_shapes),
            self.windows,
            self.window_tokens,
            self.classes,
            self.micro_topics,
            self.gram,
            self.experts or None,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights in bfloat16: linear modules, norms and router, embeddings and head."""
        layer = sum(n_out * n_in for n_out, n_in in self.module_shapes) + (2 + self.experts) * self.hidden
        outside = (1 if self.tied else 2) * self.vocab * self.hidden + self.hidden
        return 2 * (self.layers * layer + outside)


def read_config(path: Path) -> dict[str, Any]:
    """Return the model's part of `Sizes` from its `config.json`.

    Raises:
        ArtifactError: missing, or not JSON.
        SourceError: it lacks a number, or not all layers of a mixture have experts.
        UnknownName: no layout for its architecture.
    """
    path = path / "config.json" if path.is_dir() else path
    config = read_json(path, run="neuronrank size --help, and give the numbers themselves")
    architecture = config.get("model_type", "llama") if isinstance(config, dict) else "llama"
    if architecture not in registry.names("models"):
        known = ", ".join(registry.names("models"))
        raise UnknownName(f"{path}: architecture {architecture!r} is not supported; supported: {known}")
    layout = registry.load("models", architecture).LAYOUT
    of_experts = layout.experts is not None
    if of_experts and (config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers")):
        raise SourceError(f"{path}: has layers without experts (decoder_sparse_step, mlp_only_layers): not supported")
    names = {
        "hidden": "hidden_size",
        "intermediate": layout.intermediate or "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "vocab": "vocab_size",
    }
    missing = [name for name in names.values() if not isinstance(config, dict) or not isinstance(config.get(name), int)]
    if missing:
        raise SourceError(f"{path}: has no {', '.join(missing)}; expected the config.json of a decoder model")
    found = {name: config[key] for name, key in names.items()}
    return found | {
        "kv_heads": config.get("num_key_value_heads") or found["heads"],
        "head_dim": config.get("head_dim") or found["hidden"] // found["heads"],
        "tied": bool(config.get("tie_word_embeddings")),
        "architecture": architecture,
        "experts": (config.get("num_local_experts") or config.get("num_experts") or 0) if of_experts else 0,
    }
