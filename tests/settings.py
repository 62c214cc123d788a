"""At least two settings of every parameter of every method: what the whole-method tests go through.

Each entry is a part of a recipe; `CLASSES`, `TOPICS` and `FEWER` stand for numbers that the artifact at hand allows.
"""

import itertools

CLASSES, FEWER_CLASSES, TOPICS, FEWER_TOPICS, SAMPLES = "CLASSES", "FEWER_CLASSES", "TOPICS", "FEWER_TOPICS", "SAMPLES"

SELECT = {
    "weight_exp": [0.0, 0.5],
    "idf_exp": [0.5, -0.5],
    "spikiness_exp": [0.7, 2.0],
    "threshold": ["relative", "sign"],
    "q_active": [0.3, 0.8],
    "kappa": [0.5, 1.5],
    "smooth": [True],
    "idf_max": [0.8, 0.95],
    "spike_quantile": [0.5, 0.95],
    "spike_max": [4.2, 4.9],
    "eps": [0.45, 0.5],
}
CLASS = {"weight_exp": [0.5, 2.0], "classes": [FEWER_CLASSES], "element": [False]}
VARIANCE = {
    "variance_exp": [0.5, 2.0],
    "variance_multi": [0.1, 5.0],
    "token_weight": [0.5, 3.0],
    "classes": [FEWER_CLASSES, 0],
}
KNOBS = {
    "none": {},
    "magnitude": {"weight_exp": [0.5, 2.0]},
    "wanda": {"weight_exp": [0.5, 2.0], "activation_exp": [0.5, 2.0], "nsamples": [SAMPLES]},
    "wanda_idf": SELECT,
    "wanda_spiky": SELECT,
    "wanda_select": SELECT,
    "neuronrank_tfidf": {
        "mode": ["topic"],
        "topics": [FEWER_TOPICS],
        "axis": ["input", "gate_pre"],
        "weight_exp": [0.0, 0.5],
        "tf_exp": [0.5, 1.5],
        "idf_exp": [0.0, -1.0, 2.0],
        "spikiness_exp": [1.0, 2.0],
        "threshold": ["relative", "sign"],
        "q_active": [0.3, 0.9],
        "kappa": [0.8, 1.1],
        "spike_quantile": [0.5, 0.95],
        "spike_max": [3.2, 3.8],
        "eps": [1.5, 3.0],
        "nsamples": [SAMPLES],
    },
    "neuronrank_old": {
        "weight_exp": [0.0, 2.0],
        "tf_exp": [0.0, 1.5],
        "idf_exp": [0.0, 2.0],
        "threshold": ["sign", "pooled", "relative"],
        "theta": [0.3, 0.6, -0.05],
        "q_active": [0.3, 0.8],
        "kappa": [0.5, 1.5],
        "magnitude": ["row_norm", "neuron_norm"],
    },
    "neuronrank": {**VARIANCE, "magnitude_multi": [0.1, 1.0]},
    "neuronrank_unstructured": {**VARIANCE, "magnitude_multi": [0.1, 1.0]},
    "neuronrank_variance": {"classes": [FEWER_CLASSES]},
    "neuronrank_fisher": {**CLASS, "eps": [1.0, 10.0]},
    "neuronrank_between": CLASS,
    "neuronrank_qda": {**CLASS, "eps": [1.0, 10.0]},
    "neuronrank_mahalanobis": {**CLASS, "eps": [1.0, 10.0], "pooled": [True]},
    "neuronrank_pca_qda": {**CLASS, "eps": [1.0, 10.0], "components": [1, 3]},
}

NEEDS = {
    "q_active": {"threshold": "pooled"},
    "kappa": {"threshold": "relative"},
    "theta": {"threshold": "theta"},
    "topics": {"mode": "topic"},
    "spike_quantile": {"spikiness_exp": 1.0, "spike_max": 100.0},
    "spike_max": {"spikiness_exp": 1.0},
    "eps": {"spikiness_exp": 1.0, "spike_max": 100.0},
    "smooth": {"idf_exp": 1.0},
    "idf_max": {"idf_exp": 1.0},
    "variance_exp": {"magnitude_multi": 0.1},
    "variance_multi": {"magnitude_multi": 0.1},
}
"""What a parameter needs beside itself to have an effect: a monotone change of the only term changes no order."""
IDF = {"threshold", "q_active", "kappa", "smooth", "idf_max"}

WITHOUT_EFFECT = {
    ("magnitude", "weight_exp"),  # a power keeps the order within a module
    ("neuronrank_old", "threshold", "sign"),  # the same as theta 0
}


def base(method: str, knob: str | None) -> dict:
    """The setting that a knob is turned from."""
    start = {"method": method}
    if method.startswith("neuronrank") and method not in ("neuronrank_tfidf", "neuronrank_old"):
        start["classes"] = CLASSES
    if method == "neuronrank_tfidf":
        start["topics"] = TOPICS
    if method == "neuronrank_unstructured":
        start |= {"magnitude_multi": 0.5}
    if knob is None:
        return start
    needed = {key: value for key, value in NEEDS.get(knob, {}).items() if key in KNOBS[method]}
    if method == "wanda_spiky" and knob in IDF:
        needed |= {"idf_exp": 1.0}
    return start | needed


def settings(methods: list[str]) -> list[tuple[dict, dict]]:
    """Return (base, changed) for every setting of every knob of the methods."""
    pairs = [
        (base(method, knob), {**base(method, knob), knob: value})
        for method in methods
        for knob, values in KNOBS[method].items()
        for value in values
    ]
    return [(one, other) for one, other in pairs if one != other]


def filled(part: dict, numbers: dict) -> dict:
    """Put numbers in the place of names such as CLASSES."""
    return {key: numbers.get(value, value) if isinstance(value, str) else value for key, value in part.items()}


def distinct(pairs: list[tuple[dict, dict]]) -> list[dict]:
    """Return every setting once."""
    seen = {repr(sorted(part.items())): part for part in itertools.chain.from_iterable(pairs)}
    return list(seen.values())
