"""The flags that are parameters of methods, and messages of the library told in flags."""

import re
from typing import Any

import click

METHOD_FLAGS: dict[str, tuple[str, Any, str]] = {
    "weight-exp": ("weight_exp", float, "Exponent of |W|."),
    "activation-exp": ("activation_exp", float, "Exponent of Wanda's norm."),
    "tf-exp": ("tf_exp", float, "Exponent of TF."),
    "idf-exp": ("idf_exp", float, "Exponent of IDF; > 0 favours specialists."),
    "nr-spikiness-exp": ("spikiness_exp", float, "Exponent of spikiness."),
    "nr-tfidf-mode": ("mode", click.Choice(["doc", "topic"]), "Count documents or topics."),
    "nr-tfidf-k": ("topics", int, "Number of topics."),
    "nr-q-active": ("q_active", float, "Quantile of the pooled activity threshold."),
    "nr-axis": ("axis", click.Choice(["neuron", "gate_pre", "input"]), "Whose channels TF-IDF counts."),
    "neuronrank-max-classes": ("classes", int, "Number of token classes."),
    "neuronrank-token-weight": ("token_weight", float, "Weight of the variance over tokens."),
    "variance-exp": ("variance_exp", float, "Exponent of the variance."),
    "variance-multi": ("variance_multi", float, "Multiplier of the variance."),
    "magnitude-multi": ("magnitude_multi", float, "Multiplier of the magnitude."),
    "nr-pca-components": ("components", int, "Most principal components."),
}
"""Flag -> parameter of the scoring method, its type, and help. In a hybrid they are the MLP method's."""


_FLAG_OF = {parameter: flag for flag, (parameter, _, _) in METHOD_FLAGS.items()} | {"threshold": "threshold"}


def _flag_of(match: re.Match[str]) -> str:
    """Name the flag of a method's parameter; a parameter without one is given with --set."""
    method, name = match.groups()
    return f"--{_FLAG_OF[name]}: " if name in _FLAG_OF else f"--prune_method {method}: {name}: "


_SAID_AS: dict[str, Any] = {
    r"--prune_method (\w+)\.(?:attention|mlp)\.(\w+): ": _flag_of,
    r"--sparsity_type\.sparsity: ": "--sparsity_ratio: ",
    r", or \{attention: share, mlp: share\}": "",
    r"attention, mlp and lm_head are all false: nothing would be pruned": "nothing is left to prune; leave "
    "--nr-skip-mlp or --nr-skip-attention out (structured masks and --pruning_last prune the MLP only)",
    r"Raise collect\.classes \(.*?\) and": "Lower --neuronrank-max-classes, or give more text.",
    r"(collect\.(?:classes|topics\.micro_topics): 0), raise it": r"none of them; leave --statistics out",
    r"Raise collect\.topics\.micro_topics and": "Leave --statistics out.",
    r"Leave nsamples out, or set prepare\.calibration_windows: \d+": "Leave --statistics out, or give --nsamples of "
    "the artifact",
    r"; or score only attention \(mlp: \{method: none\}\)": ", or give --nr-skip-mlp",
    r"^model\.path: ": "--model ",
    r"eval\.zero_shot\.tasks": "--eval-zero-shot",
    r"leave the tasks empty": "leave --eval-zero-shot out",
    r"prepare\.calibration_windows": "--nsamples",
    r"prepare\.window_tokens": "--seqlen",
    r"Set collect\.(profile|dtype):": r"Give --\1",
    r"collect\.(profile|dtype):": r"--\1",
    r"untie_lm_head: true \(--untie-lm-head\)": "--untie-lm-head",
    r"\bpruning_last (\d+): ": r"--pruning_last \1: ",
    r"(,| and|\.)? ?([Rr]un|Make it again): dvc repro( --force)?( [\w@]+)*": "",
}
"""What messages say to people who have a params.yaml -> what it is on this command line; patterns, in order."""


def in_flags(message: str) -> str:
    """Return a message of the library with flags in place of parameters and stages; no line comes twice."""
    for pattern, said in _SAID_AS.items():
        message = re.sub(pattern, said, message)
    return "\n".join(dict.fromkeys(message.splitlines()))
