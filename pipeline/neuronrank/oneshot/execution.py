"""Run a request: statistics, factors, mask, and what is saved and measured of it."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.compact import export_compact
from neuronrank.errors import SourceError
from neuronrank.export import export_model
from neuronrank.fetching import fetch_model
from neuronrank.files import canonical_json, sha256_text, write_json
from neuronrank.locks import one_writer
from neuronrank.mask_store import MaskFile
from neuronrank.masking import make_masks
from neuronrank.oneshot.calibration import Scored, scored_alone, scored_statistics
from neuronrank.oneshot.preflight import require_possible
from neuronrank.oneshot.request import Request
from neuronrank.oneshot.tokens import calibration_tokens, evaluation_tokens
from neuronrank.outputs import new_output, output_directory
from neuronrank.score_store import write_scores
from neuronrank.scores import score_header
from neuronrank.seals import FIELD
from neuronrank.zero_shot import Tasks, ZeroShotParams, load_tasks

log = logging.getLogger("neuronrank")


@dataclass(frozen=True)
class Outputs:
    """What a run leaves beside its log."""

    save: Path | None = None
    """Directory for the mask, the factors and `summary.json`."""
    save_model: Path | None = None
    """Directory for the pruned model; neurons that every layer loses are cut out."""
    statistics: Path | None = None
    """A statistics artifact to use."""
    cache: Path | None = None
    """Where statistics and windows are kept between runs."""
    perplexity: bool = False
    """Measure perplexity, dense and pruned."""
    zero_shot: bool = False
    """Measure the usual seven zero-shot tasks of the pruned model."""


def default_cache() -> Path:
    """Return where statistics are kept between runs unless told otherwise."""
    return Path(platformdirs.user_cache_path("neuronrank")) / "run"


def execute(request: Request, outputs: Outputs) -> dict[str, Any]:
    """Run a request.

    Returns:
        The summary, as `summary.json` holds it: request, calibration, counts of modules and parts, realised sparsity,
        seconds, and what was measured.

    Raises:
        SourceError: an output directory exists already, or model or text cannot be had.
        NeuronrankError: see the stages.
    """
    with _held(outputs):
        return _execute(request, outputs)


def _execute(request: Request, outputs: Outputs) -> dict[str, Any]:
    zero_shot = ZeroShotParams(tasks=["usual_seven"] if outputs.zero_shot else [])
    tasks = load_tasks(zero_shot)  # what is missing is told before anything runs
    cache = outputs.cache or default_cache()
    model = _model(request, cache)
    require_possible(model, request)
    begin = time.perf_counter()
    scored = _scored(model, request, cache, outputs.statistics)
    seconds = {"collect": scored.collect_seconds, "score": time.perf_counter() - begin - scored.collect_seconds}
    with tempfile.TemporaryDirectory() as scratch:
        path, kept_scores = Path(scratch) / "mask.safetensors", Path(scratch) / "scores.safetensors"
        begin = time.perf_counter()
        header = score_header(scored.manifest, request.name, scored.recipe)
        header[FIELD] = write_scores(kept_scores, scored.factors, header)
        made = make_masks(model, scored.factors, header, request.pattern, "run", path)
        seconds["prune"] = time.perf_counter() - begin
        masks = MaskFile(path)
        summary = {
            "method": request.name,
            "parts": header["parts"],
            "pattern": masks.header["pattern"],
            "model": header["model"],
            "calibration": {**_calibration(scored), "forward_pass": scored.forward_pass},
            "collect": scored.manifest["collect"],
            "sparsity": made["sparsity"],
            "part_counts": made["parts"],
            "modules": made["modules"],
            "made_from": made["made_from"],
            "versions": header["versions"],
            "measured": _measured(model, request, masks, outputs.perplexity, (tasks, zero_shot)),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        if outputs.save:
            with output_directory(outputs.save) as partial:
                (partial / "mask.safetensors").write_bytes(path.read_bytes())
                shutil.copyfile(kept_scores, partial / "scores.safetensors")
                write_json(partial / "summary.json", summary)
            log.info("mask, factors and summary: %s", outputs.save)
        if outputs.save_model:
            compact = request.pattern.rule.RANKS == "neurons" and request.pattern.params.pruning_last is None
            (export_compact if compact else export_model)(model, masks, outputs.save_model)
            log.info("pruned model%s: %s", ", neurons cut out" if compact else "", outputs.save_model)
        if not (outputs.save or outputs.save_model):
            log.info("neither mask nor model is kept; --save and --save_model keep them")
    return summary


@contextmanager
def _held(outputs: Outputs) -> Iterator[None]:
    """Hold the places that are written to, where nothing may be; neither may lie in the other."""
    if outputs.save and outputs.save_model:
        one, other = outputs.save.resolve(), outputs.save_model.resolve()
        if one in (other, *other.parents) or other in one.parents:
            raise SourceError(
                f"--save {outputs.save} and --save_model {outputs.save_model}: one lies in the other; choose two places"
            )
    with ExitStack() as held:
        for place in filter(None, (outputs.save, outputs.save_model)):
            held.enter_context(new_output(place))
        yield


def _model(request: Request, cache: Path) -> ModelArtifact:
    """Fetch and describe the model anew each time: its files may have changed."""
    directory = cache / "models" / sha256_text(canonical_json(request.model))[:16]
    with one_writer(directory, wait=True):
        description = fetch_model(request.model, directory)
    log.info("model: %s, fingerprint %s", json.dumps(request.model), description["fingerprint"][:16])
    return open_model(directory)


def _scored(model: ModelArtifact, request: Request, cache: Path, given: Path | None) -> Scored:
    if not request.reads_statistics:
        return scored_alone(model, request)
    windows = calibration_tokens(model, request.text["calibration"], request.prepare, cache / "windows")
    return scored_statistics(model, windows, request, cache / "statistics", given)


def _calibration(scored: Scored) -> dict[str, Any]:
    if scored.directory is None:
        return {}
    described = {key: value for key, value in scored.manifest["calibration"].items() if key != "origins"}
    held = {"n_windows": scored.n_documents, "n_windows_held": described["n_windows"]}
    return {**described, **held, "statistics": str(scored.directory), "profile": scored.manifest["profile"]}


def _measured(
    model: ModelArtifact,
    request: Request,
    masks: MaskFile,
    wants_perplexity: bool,
    zero_shot: tuple[Tasks, ZeroShotParams],
) -> dict[str, Any]:
    """Measure the pruned model in memory, as far as it was asked for."""
    tasks, options = zero_shot
    if not (wants_perplexity or tasks):
        return {}
    from transformers import AutoTokenizer

    from neuronrank.comparison import perplexity
    from neuronrank.evaluation import load_model, window_losses
    from neuronrank.zero_shot import evaluate_tasks

    tokenizer = None
    if tasks:
        model.require_its_tokenizer()
        tokenizer = AutoTokenizer.from_pretrained(model.weights_directory, trust_remote_code=False)
    texts = evaluation_tokens(model, request.text["evaluation"], request.prepare) if wants_perplexity else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, request.collect["dtype"])
    found: dict[str, Any] = {}
    for state in ("dense", "pruned"):
        network = load_model(model, dtype, device, masks if state == "pruned" else None)
        for name, windows in texts.items():
            value = perplexity(window_losses(network, windows.token_ids, 4, lambda _n: None))
            found.setdefault("perplexity", {}).setdefault(name, {})[state] = round(value, 4)
            log.info("perplexity of the %s model on %s: %.4f", state, name, value)
    if tasks:
        found["zero_shot"] = evaluate_tasks(network, tokenizer, tasks, options)
    return found
