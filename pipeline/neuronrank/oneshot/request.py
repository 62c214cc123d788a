"""Flags of the one-shot command line -> the sections that params.yaml would hold for the same run.

Source: METHODS section 6. A flag that the chosen method does not have is refused, never ignored.
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from neuronrank import registry
from neuronrank.compatibility import why_unfit
from neuronrank.errors import ParamsError
from neuronrank.patterns import Pattern, read_pattern
from neuronrank.presets import ALIASES, PRESETS
from neuronrank.recipes import Recipe, read_recipe
from neuronrank.registry import nearest
from neuronrank.scores import reads_statistics

log = logging.getLogger("neuronrank")

WIKIPEDIA: dict[str, Any] = {
    "source": "wikipedia_articles",
    "wheel": {
        "package": "gensim",
        "version": "4.4.0",
        "sha256": "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    },
}
"""The text when none is named: articles to calibrate on and others to evaluate on."""

HYBRID = "hybrid"
HYBRID_MLP = ("neuronrank_tfidf", "neuronrank_old")
_N_OF_M = re.compile(r"([1-9][0-9]*):([1-9][0-9]*)")
_DEFAULT_CLASSES, _DEFAULT_MICRO_TOPICS = 512, 128
_TOKEN_CLASSES = "classes"
_GOVERNED = {
    "topics": ("mode", "topic", "--nr-tfidf-mode topic"),
    "q_active": ("threshold", "pooled", "--threshold pooled"),
    "kappa": ("threshold", "relative", "--threshold relative"),
    "theta": ("threshold", "theta", "--threshold NUMBER"),
}
"""Parameter -> another that must have this value, and the flag for it: without it the parameter does nothing."""
_OF_EXPONENT = {
    **dict.fromkeys(("threshold", "q_active", "kappa", "theta", "smooth", "idf_max"), "idf_exp"),
    **dict.fromkeys(("spike_quantile", "spike_max"), "spikiness_exp"),
}
"""Parameter -> the exponent of the factor that it shapes: with 0 it does nothing."""


@dataclass(frozen=True)
class Flags:
    """What was typed; None and False where a flag was not given."""

    model: str
    prune_method: str
    sparsity_ratio: float | None = None
    sparsity_type: str | None = None
    use_variant: bool = False
    group: str | None = None
    nsamples: int = 128
    seqlen: int = 512
    seed: int = 0
    dtype: str = "bfloat16"
    profile: str = "standard"
    text: str | None = None
    eval_text: str | None = None
    pruning_last: int | None = None
    include_attention: bool = False
    skip_attention: bool = False
    skip_mlp: bool = False
    prune_lm_head: bool = False
    untie_lm_head: bool = False
    hybrid_mlp_method: str | None = None
    preset: str | None = None
    threshold: str | None = None
    method_params: dict[str, Any] = field(default_factory=dict)
    """Parameter of the scoring method -> value, for flags that were given."""


@dataclass(frozen=True)
class Request:
    """One run, validated."""

    model: dict[str, Any]
    text: dict[str, Any]
    prepare: dict[str, Any]
    collect: dict[str, Any]
    name: str
    recipe: Recipe
    pattern: Pattern

    @property
    def reads_statistics(self) -> bool:
        """Whether any part needs calibration."""
        return any(reads_statistics(name, part) for name, part in self.recipe.items())

    @property
    def uses_topics(self) -> bool:
        """Whether a part counts topics, so that how they were found matters."""
        return any(getattr(part.params, "mode", "doc") == "topic" for part in self.recipe.values())


def read_request(flags: Flags) -> Request:
    """Validate the flags.

    Raises:
        ParamsError: one message that names the flag.
    """
    method = _method(flags)
    name = HYBRID if flags.prune_method == HYBRID else method
    if flags.include_attention and flags.skip_attention:
        raise ParamsError("--nr-include-attention and --nr-skip-attention contradict each other")
    recipe = read_recipe(_recipe(flags, method), f"--prune_method {method}")
    chosen = _pattern(flags, method)
    pattern = read_pattern(chosen, "--sparsity_type")
    if _left_dense(flags, method) and recipe["attention"].params.method == "none" and pattern.params.attention:
        if flags.skip_mlp:
            raise ParamsError(f"--nr-skip-mlp: {method} prunes attention when told so, add --nr-include-attention")
        log.info("attention: left dense by %s unless --nr-include-attention is given", method)
    why = why_unfit(recipe, pattern)
    if why:
        raise ParamsError(f"--prune_method {name} with --sparsity_type {flags.sparsity_type or chosen['rule']}: {why}")
    return Request(
        model=_model(flags.model, flags.dtype),
        text=_text(flags),
        prepare={
            "window_tokens": flags.seqlen,
            "calibration_windows": flags.nsamples,
            "evaluation_windows": 12,
            "seed": flags.seed,
        },
        collect=_collect(flags, recipe),
        name=name,
        recipe=recipe,
        pattern=pattern,
    )


def _text(flags: Flags) -> dict[str, Any]:
    articles = {**WIKIPEDIA, "split": "train"}, {"wikipedia": {**WIKIPEDIA, "split": "test"}}
    return {
        "calibration": {"source": "files", "pattern": flags.text} if flags.text else articles[0],
        "evaluation": {"text": {"source": "files", "pattern": flags.eval_text}} if flags.eval_text else articles[1],
    }


def _collect(flags: Flags, recipe: Recipe) -> dict[str, Any]:
    """Keep what most methods read, and as many classes and micro-topics as this recipe does."""
    chosen: list[Any] = [part.params for part in recipe.values()]
    topics = max(params.topics if getattr(params, "mode", "doc") == "topic" else 0 for params in chosen)
    return {
        "dtype": flags.dtype,
        "documents_per_batch": 4,
        "profile": flags.profile,
        "classes": max(_DEFAULT_CLASSES, *(getattr(params, _TOKEN_CLASSES, 0) for params in chosen)),
        "topics": {
            "micro_topics": max(min(_DEFAULT_MICRO_TOPICS, flags.nsamples * flags.seqlen), topics),
            "iterations": 8,
            "seed": flags.seed,
        },
    }


def _model(name: str, dtype: str) -> dict[str, Any]:
    if Path(name).exists():
        return {"source": "path", "path": name, "dtype": dtype}
    repository, _, revision = name.partition("@")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) and revision:
        return {"source": "hub", "id": repository, "revision": revision}
    raise ParamsError(
        f"--model {name}: no such directory or .gguf file. A model of the hub is given with its commit, as "
        f"organisation/name@<40-digit commit>"
    )


def _method(flags: Flags) -> str:
    """Return the method that the flags' parameters are for: the MLP's in a hybrid."""
    if flags.prune_method == HYBRID:
        name = flags.hybrid_mlp_method or HYBRID_MLP[0]
        name = ALIASES.get(name, name)
        if name not in HYBRID_MLP:
            raise ParamsError(f"--hybrid-mlp-method {name!r}: expected {' or '.join(HYBRID_MLP)}")
        return name
    if flags.hybrid_mlp_method:
        raise ParamsError(f"--hybrid-mlp-method: only with --prune_method hybrid, not {flags.prune_method!r}")
    name = ALIASES.get(flags.prune_method, flags.prune_method)
    known = [*(method for method in registry.names("scoring") if method != "none"), HYBRID, *ALIASES]
    if name not in known:
        raise ParamsError(
            f"--prune_method {flags.prune_method!r}: unknown{nearest(flags.prune_method, known)}; "
            f"known: {', '.join(known)}"
        )
    return name


def _recipe(flags: Flags, method: str) -> dict[str, Any]:
    scored = registry.load("scoring", method)
    part = {"method": method, **_preset(flags, method), **_threshold(flags, method), **flags.method_params}
    unknown = sorted(set(part) - set(scored.Params.model_fields))
    if unknown:
        known = ", ".join(key for key in scored.Params.model_fields if key != "method")
        raise ParamsError(f"--prune_method {method}: has no parameter {unknown[0]!r}; it has: {known}")
    _require_governed(flags, method, part, scored)
    if flags.prune_method == HYBRID:
        return {"attention": {"method": "wanda"}, "mlp": part}
    if flags.include_attention and "attention" not in scored.PARTS:
        raise ParamsError(f"--nr-include-attention: {method} scores the MLP only; leave it out")
    attention = part if "attention" in scored.PARTS and _with_attention(flags, method) else {"method": "none"}
    return {"attention": attention, "mlp": {"method": "none"} if flags.skip_mlp else part}


def _require_governed(flags: Flags, method: str, part: dict[str, Any], scored: ModuleType) -> None:
    """Refuse a parameter that would do nothing beside the others."""
    fields = scored.Params.model_fields
    for name in sorted(_GOVERNED.keys() & flags.method_params.keys()):
        other, value, flag = _GOVERNED[name]
        found = part.get(other, fields[other].default)
        if found != value:
            raise ParamsError(
                f"--prune_method {method}: {name} does nothing with {other} {found!r}; leave it out, or add {flag}"
            )
    given = flags.method_params.keys() | _threshold(flags, method).keys()
    for name in sorted(_OF_EXPONENT.keys() & given):
        other = _OF_EXPONENT[name]
        if part.get(other, fields[other].default) == 0:
            raise ParamsError(
                f"--prune_method {method}: {name} does nothing with {other} 0; leave it out, or set {other}"
            )


def _with_attention(flags: Flags, method: str) -> bool:
    return not (flags.skip_attention or _left_dense(flags, method))


def _left_dense(flags: Flags, method: str) -> bool:
    """Say whether the method leaves attention dense because nobody asked for it."""
    return method == "neuronrank_old" and not flags.include_attention


def _preset(flags: Flags, method: str) -> dict[str, Any]:
    if flags.preset is None:
        return {}
    if method != "neuronrank_tfidf":
        raise ParamsError(f"--preset: presets are of neuronrank_tfidf, not of {method}")
    if flags.preset not in PRESETS:
        raise ParamsError(f"--preset {flags.preset!r}: unknown; known: {', '.join(PRESETS)}")
    return dict(PRESETS[flags.preset])


def _threshold(flags: Flags, method: str) -> dict[str, Any]:
    """A number is theta of neuronrank_old; a word is the kind of threshold."""
    if flags.threshold is None:
        return {}
    try:
        theta = float(flags.threshold)
    except ValueError:
        return {"threshold": flags.threshold}
    if method != "neuronrank_old":
        raise ParamsError(
            f"--threshold {flags.threshold}: a number is the theta of neuronrank_old; {method} takes pooled, relative "
            f"or sign"
        )
    return {"threshold": "theta", "theta": theta}


def _pattern(flags: Flags, method: str) -> dict[str, Any]:
    scored = registry.load("scoring", method)
    structured_only = not hasattr(scored, "channel_factor") and not hasattr(scored, "channel_term")
    structured_only = structured_only and hasattr(scored, "neuron_score")
    kind = flags.sparsity_type or ("structured" if structured_only else "unstructured")
    ratio = 0.5 if flags.sparsity_ratio is None else flags.sparsity_ratio
    if flags.use_variant and kind != "unstructured":
        raise ParamsError(f"--use_variant: a rule of unstructured masks, not of {kind}")
    if flags.group and (flags.use_variant or kind != "unstructured"):
        raise ParamsError("--group: only with --sparsity_type unstructured, without --use_variant")
    attention = kind != "structured" and flags.pruning_last is None and not flags.skip_attention
    chosen: dict[str, Any] = {"attention": attention, "mlp": not flags.skip_mlp, "pruning_last": flags.pruning_last}
    if flags.include_attention and not attention:
        raise ParamsError("--nr-include-attention: --pruning_last and structured masks prune the MLP only")
    if flags.prune_lm_head or flags.untie_lm_head:
        chosen |= {"lm_head": True, "untie_lm_head": flags.untie_lm_head}
    if kind == "structured":
        return {"rule": "structured", "sparsity": ratio, **chosen}
    if kind == "unstructured":
        rule = {"rule": "wanda_variant"} if flags.use_variant else {"rule": "unstructured", "group": flags.group}
        return {**rule, "sparsity": ratio, **chosen}
    found = _N_OF_M.fullmatch(kind)
    if not found:
        raise ParamsError(f"--sparsity_type {kind!r}: expected unstructured, structured or n:m (n of every m are kept)")
    keep_n, group_m = (int(number) for number in found.groups())
    return {"rule": "n_of_m", "keep_n": keep_n, "group_m": group_m, "sparsity": flags.sparsity_ratio, **chosen}
