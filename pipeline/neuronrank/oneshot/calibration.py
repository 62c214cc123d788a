"""The statistics of a one-shot run: an artifact that fits, or one collected now and kept for the next run."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import CollectParams
from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import canonical_json, sha256_text
from neuronrank.oneshot.request import Request
from neuronrank.params import validate
from neuronrank.recipes import Recipe, RecipePart
from neuronrank.score_store import Factors
from neuronrank.scores import compute_factors
from neuronrank.statistics_store import MANIFEST, Statistics
from neuronrank.windows import Windows

log = logging.getLogger("neuronrank")


@dataclass(frozen=True)
class Scored:
    """Factors and what they were computed from."""

    statistics: Statistics
    recipe: Recipe
    factors: Factors
    reused: bool
    """No forward pass ran."""
    collect_seconds: float


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
        MismatchError: `given` does not fit; the message says why.
    """
    nearby = [Path("artifacts/statistics"), *sorted(path.parent for path in cache.glob(f"*/{MANIFEST}"))]
    for directory in [given] if given else nearby:
        try:
            opened, recipe = _opened(directory, model, windows, request)
            factors = compute_factors(opened, recipe)
        except MismatchError as err:
            if given:
                raise
            log.debug("%s: does not fit: %s", directory, err)
            continue
        except ArtifactError as err:  # an earlier schema, a smaller profile, or damage: worth knowing
            if given:
                raise
            if directory.exists():
                log.info("calibration: %s is not used: %s", directory, err)
            continue
        log.info("calibration: no forward pass, statistics of %s are reused", directory)
        return Scored(opened, recipe, factors, reused=True, collect_seconds=0.0)
    return _collected(model, windows, request, cache)


def _opened(directory: Path, model: ModelArtifact, windows: Windows, request: Request) -> tuple[Statistics, Recipe]:
    opened = Statistics(directory)
    manifest, n = opened.manifest, len(windows.token_ids)
    collect = manifest["collect"]
    for what, found, wanted in (
        ("model", manifest["model"]["fingerprint"], model.fingerprint),
        ("dtype", collect["dtype"], request.collect["dtype"]),
        ("propagation", collect["propagation"], "dense"),
        ("topics", *((collect["topics"], request.collect["topics"]) if request.uses_topics else ("", ""))),
    ):
        if found != wanted:
            raise MismatchError(f"{directory}: {what} is {found}, the run needs {wanted}. Leave --statistics out")
    held = opened.token_ids()
    if held.shape[1:] != windows.token_ids.shape[1:] or not np.array_equal(held[:n], windows.token_ids):
        raise MismatchError(
            f"{directory}: collected on other text, length, seed or number of windows than {n} of these"
        )
    if len(held) == n:
        return opened, request.recipe
    return opened, {name: _with_samples(directory, part, n) for name, part in request.recipe.items()}


def _with_samples(directory: Path, part: RecipePart, n: int) -> RecipePart:
    """Return a recipe's part that uses the first n documents only."""
    if part.method.READS == "nothing":
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
    log.info("calibration: no fitting statistics; a forward pass over %d windows of %d tokens", n_documents, n_tokens)
    begin = time.perf_counter()
    collect_statistics(model, windows, options, out)
    seconds = time.perf_counter() - begin
    log.info("calibration: collected in %.1f s, kept at %s", seconds, out)
    opened = Statistics(out)
    return Scored(opened, request.recipe, compute_factors(opened, request.recipe), False, seconds)
