"""What architectures have in common: attentions, MLPs with and without a gate, and Llama's layer, which many share."""

from typing import Any

from neuronrank.models import LinearRole, ModelLayout, TapPoint


def attention_roles(q: str, k: str, v: str, o: str) -> tuple[LinearRole, ...]:
    """Return the roles of an attention whose projections have these paths; one path may stand for several."""
    fused = len({q, k, v}) == 1
    return (
        LinearRole(q, "attention", "attn_in", "q_out", "row", "q" if fused else None),
        LinearRole(k, "attention", "attn_in", "k_out", "row", "k" if fused else None),
        LinearRole(v, "attention", "attn_in", "v_out", "row", "v" if fused else None),
        LinearRole(o, "attention", "attn_ctx", "attn_ctx", "column"),
    )


def attention_taps(q: str, k: str, v: str, o: str) -> dict[str, TapPoint]:
    """Return the taps of the same attention."""
    fused = len({q, k, v}) == 1
    return {
        "attn_in": TapPoint(q, "input"),
        "q_out": TapPoint(q, "output", "q" if fused else None),
        "k_out": TapPoint(k, "output", "k" if fused else None),
        "v_out": TapPoint(v, "output", "v" if fused else None),
        "attn_ctx": TapPoint(o, "input"),
    }


def gated_roles(gate: str, up: str, down: str) -> tuple[LinearRole, ...]:
    """Return the roles of a gated MLP; one path may stand for gate and up."""
    return (
        LinearRole(gate, "mlp", "mlp_in", "neuron", "row", "gate" if gate == up else None),
        LinearRole(up, "mlp", "mlp_in", "neuron", "row", "up" if gate == up else None),
        LinearRole(down, "mlp", "mlp_mid", "neuron", "column"),
    )


def gated_taps(gate: str, up: str, down: str, activation: str) -> dict[str, TapPoint]:
    """Return the taps of the same MLP; `activation` is the path of its activation function."""
    return {
        "mlp_in": TapPoint(gate, "input"),
        "gate_pre": TapPoint(gate, "output", "gate" if gate == up else None),
        "neuron": TapPoint(activation, "output"),
        "mlp_mid": TapPoint(down, "input"),
    }


def plain_roles(first: str, second: str) -> tuple[LinearRole, ...]:
    """Return the roles of an MLP without a gate: its neurons are what enters the second module."""
    return (
        LinearRole(first, "mlp", "mlp_in", "neuron", "row"),
        LinearRole(second, "mlp", "mlp_mid", "neuron", "column"),
    )


def plain_taps(first: str, second: str) -> dict[str, TapPoint]:
    """Return the taps of the same MLP."""
    return {
        "mlp_in": TapPoint(first, "input"),
        "gate_pre": TapPoint(first, "output"),
        "neuron": TapPoint(second, "input"),
        "mlp_mid": TapPoint(second, "input"),
    }


def fused_and_plain(layers: str, qkv: str, output: str, mlp: tuple[str, str], **others: Any) -> ModelLayout:
    """Return the layout of layers with q, k, v in one weight and no gate; `others` as of `ModelLayout`."""
    attention = (qkv, qkv, qkv, output)
    return ModelLayout(
        layers=layers,
        linears=attention_roles(*attention) + plain_roles(*mlp),
        taps=attention_taps(*attention) | plain_taps(*mlp),
        **others,
    )


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def mixture(gate: str, up: str, down: str, **others: Any) -> ModelLayout:
    """Return the layout of Llama's attention and a mixture of experts: paths of their weights; `others` as above."""
    return ModelLayout(
        layers="model.layers",
        linears=attention_roles(*_ATTENTION) + gated_roles(gate, up, down),
        taps=attention_taps(*_ATTENTION),
        experts="mlp.experts",
        **others,
    )


LLAMA = ModelLayout(
    layers="model.layers",
    linears=attention_roles(*_ATTENTION) + gated_roles(*_MLP),
    taps=attention_taps(*_ATTENTION) | gated_taps(*_MLP, "mlp.act_fn"),
)
