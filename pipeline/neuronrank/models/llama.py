"""Llama: separate q, k, v, o and a gated MLP; `act_fn` is a module, so a = phi(g) is its output."""

from neuronrank.models import LinearRole, ModelLayout, TapPoint

LAYOUT = ModelLayout(
    layers="model.layers",
    linears=(
        LinearRole("self_attn.q_proj", "attention", "attn_in", "q_out", "row"),
        LinearRole("self_attn.k_proj", "attention", "attn_in", "k_out", "row"),
        LinearRole("self_attn.v_proj", "attention", "attn_in", "v_out", "row"),
        LinearRole("self_attn.o_proj", "attention", "attn_ctx", "attn_ctx", "column"),
        LinearRole("mlp.gate_proj", "mlp", "mlp_in", "neuron", "row"),
        LinearRole("mlp.up_proj", "mlp", "mlp_in", "neuron", "row"),
        LinearRole("mlp.down_proj", "mlp", "mlp_mid", "neuron", "column"),
    ),
    taps={
        "attn_in": TapPoint("self_attn.q_proj", "input"),
        "q_out": TapPoint("self_attn.q_proj", "output"),
        "k_out": TapPoint("self_attn.k_proj", "output"),
        "v_out": TapPoint("self_attn.v_proj", "output"),
        "attn_ctx": TapPoint("self_attn.o_proj", "input"),
        "mlp_in": TapPoint("mlp.gate_proj", "input"),
        "gate_pre": TapPoint("mlp.gate_proj", "output"),
        "neuron": TapPoint("mlp.act_fn", "output"),
        "mlp_mid": TapPoint("mlp.down_proj", "input"),
    },
)
