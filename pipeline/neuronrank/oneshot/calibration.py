"""The statistics of a one-shot run: an artifact that fits, or one collected now and kept for the next run."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import CollectParams
from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import canonical_json, sha256_text
from neuronrank.locks import one_writer
from neuronrank.oneshot.flags import in_flags
from neuronrank.oneshot.model_alone import manifest_alone
from neuronrank.oneshot.preflight import require_collectable
from neuronrank.oneshot.request import Request
from neuronrank.params import validate
from neuronrank.recipes import Recipe, RecipePart
from neuronrank.score_store import Factors
from neuronrank.scores import compute_factors, reads_statistics
from neuronrank.statistics_store import MANIFEST, Statistics
from neuronrank.windows import Windows

log = logging.getLogger("neuronrank")


@dataclass(frozen=True)
class Scored:
    """Factors and what they were computed from."""

    manifest: dict[str, Any]
    """Of the statistics; of the model alone when the recipe reads nothing else."""
    directory: Path | None
    """Of the statistics."""
    recipe: Recipe
    factors: Factors
    n_documents: int = 0
    """How many of the statistics' documents were asked for."""
    forward_pass: bool = False
    collect_seconds: float = 0.0


def scored_alone(model: ModelArtifact, request: Request) -> Scored:
    """Return the scores of a recipe that reads no statistics: weights alone decide, there are no factors."""
    log.info("calibration: none, %s reads no statistics", request.name)
    return Scored(manifest_alone(model), None, request.recipe, {})


def scored_statistics(
    model: ModelArtifact, windows: Windows, request: Request, cache: Path, given: Path | None
) -> Scored:
    """Score from an artifact that fits, or collect one.

    An artifact fits when it comes from this model and number type, its calibration tokens are these, or begin with
    these and the method can be computed from its first documents, and it holds what the method needs.

    Args:
        model: that is pruned.
        windows: calibration tokens that were asked for.
        request: recipe and settings.
        cache: directory of artifacts that earlier runs left.
        given: an artifact to use; it must fit.

    Raises:
        ArtifactError: `given` is no statistics artifact, or holds too little; the message says what.
        MismatchError: `given` does not fit; the message says why.
    """
    nearby = [Path("artifacts/statistics"), *sorted(path.parent for path in cache.glob(f"[!.]*/{MANIFEST}"))]
    for directory in [given] if given else nearby:
        if not (given or directory.exists()):
            continue
        try:
            opened = Statistics(directory)
            foreign = _why_foreign(opened, model, windows, request)
            if foreign and not given:  # of another model or text, as most are that earlier runs left
                continue
            if foreign:
                raise MismatchError(f"{directory}: {foreign}")
            recipe = _fitted_recipe(opened, len(windows.token_ids), request)
            factors = compute_factors(opened, recipe)
        except (ArtifactError, MismatchError) as err:
            if given:
                why = _without_advice(directory, err)
                raise type(err)(f"--statistics {why}. Name statistics that fit, or leave --statistics out") from err
            log.info("calibration: cannot be reused: %s", _without_advice(directory, err))
            continue
        log.info("calibration: no forward pass, statistics of %s are reused", directory)
        return Scored(opened.manifest, directory, recipe, factors, len(windows.token_ids))
    return _collected(model, windows, request, cache)


def _without_advice(directory: Path, error: Exception) -> str:
    """Return an error of an artifact without what it says to do, which would be to collect anew."""
    before, name, after = str(error).partition(str(directory))
    return before + name + in_flags(after).partition(". ")[0]


def _why_foreign(opened: Statistics, model: ModelArtifact, windows: Windows, request: Request) -> str | None:
    """Return in what the statistics come from another model, number type or text; None when from this one."""
    manifest, n = opened.manifest, len(windows.token_ids)
    collect, calibration = manifest["collect"], manifest["calibration"]
    differing = _differences(
        model=(manifest["model"]["fingerprint"], model.fingerprint),
        dtype=(collect["dtype"], request.collect["dtype"]),
        propagation=(collect["propagation"], "dense"),
        seqlen=(calibration["window_tokens"], windows.token_ids.shape[1]),
    )
    if not differing and np.array_equal(opened.token_ids()[:n], windows.token_ids):
        return None  # the same tokens, however they came
    differing += _differences(
        seed=(calibration["seed"], windows.header["seed"]), text=(calibration["source"], windows.header["source"])
    )
    if calibration["n_windows"] < n:
        differing.append(f"holds {calibration['n_windows']} windows, the run asks for {n}")
    return "; ".join(differing) or "its calibration tokens are others, though drawn alike: the text has changed"


def _differences(**compared: tuple[Any, Any]) -> list[str]:
    """Return a line for everything whose found and wanted value differ."""
    return [f"{what} is {found}, the run has {wanted}" for what, (found, wanted) in compared.items() if found != wanted]


def _fitted_recipe(opened: Statistics, n: int, request: Request) -> Recipe:
    """Return the recipe, limited to the first n documents of the statistics.

    Raises:
        MismatchError: it cannot be limited so, or counts topics that were found in another way.
    """
    found, wanted = opened.manifest["collect"]["topics"], request.collect["topics"]
    if request.uses_topics and found != wanted:
        raise MismatchError(f"{opened.directory}: topics were found with {found}, the run asks for {wanted}")
    if opened.n_documents == n:
        return request.recipe
    return {name: _with_samples(opened.directory, name, part, n) for name, part in request.recipe.items()}


def _with_samples(directory: Path, name: str, part: RecipePart, n: int) -> RecipePart:
    """Return a recipe's part that uses the first n documents only."""
    if not reads_statistics(name, part):
        return part
    if "nsamples" not in part.method.Params.model_fields:
        raise MismatchError(f"{directory}: holds more than {n} documents, {part.params.method} needs exactly these")
    given: int | None = getattr(part.params, "nsamples", None)
    return RecipePart(part.method, part.params.model_copy(update={"nsamples": n if given is None else min(given, n)}))


def _collected(model: ModelArtifact, windows: Windows, request: Request, cache: Path) -> Scored:
    from neuronrank.collecting import collect_statistics

    options = validate(CollectParams, request.collect, "collect")
    key = {"model": model.fingerprint, "tokens": windows.sha256, "collect": options.model_dump(mode="json")}
    out = cache / sha256_text(canonical_json(key))[:16]
    n_documents, n_tokens = windows.token_ids.shape
    require_collectable(model, windows, request)
    log.info("calibration: no statistics fit; a forward pass over %d windows of %d tokens", n_documents, n_tokens)
    with one_writer(out, wait=True) as waited:
        begin, collected = time.perf_counter(), not (waited and (out / MANIFEST).exists())
        if collected:
            collect_statistics(model, windows, options, out)
    seconds = time.perf_counter() - begin
    if collected:
        log.info("calibration: collected in %.1f s, kept at %s", seconds, out)
    else:
        log.info("calibration: no forward pass, another run has just collected %s", out)
    opened = Statistics(out)
    factors = compute_factors(opened, request.recipe)
    return Scored(opened.manifest, out, request.recipe, factors, n_documents, collected, seconds)
