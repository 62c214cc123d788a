"""Other names of methods, and named settings of NeuronRank TF-IDF (METHODS sections 3.2, 3.4, 3.5)."""

ALIASES: dict[str, str] = {"wanda_selective": "wanda_select", "neuronrank_last": "neuronrank_old"}
"""Alias -> method."""

PRESET_METHOD = "neuronrank_tfidf"
PRESETS: dict[str, dict[str, float]] = {
    "conservative": {"weight_exp": 1.0, "tf_exp": 1.5, "idf_exp": 1.0},
    "balanced": {"weight_exp": 1.0, "tf_exp": 1.0, "idf_exp": 1.5},
    "aggressive": {"weight_exp": 0.5, "tf_exp": 1.0, "idf_exp": 2.5},
}
"""Name -> exponents of `PRESET_METHOD`."""
