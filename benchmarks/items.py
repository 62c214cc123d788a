"""What is timed, one function each: it prepares, and returns the work whose seconds count.

Each item runs in a process of its own, so that its peak memory is its own. The work runs once before it is timed, on
less, so that compiling loops and first touches do not count.
"""

import atexit
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.collecting import collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.compatibility import why_unfit
from neuronrank.evaluation import load_model, window_losses
from neuronrank.masking import make_masks
from neuronrank.params import lookup, read_params, validate
from neuronrank.patterns import Pattern, read_pattern
from neuronrank.recipes import read_recipe
from neuronrank.score_store import write_scores
from neuronrank.scores import compute_factors, score_header
from neuronrank.statistics_store import Statistics
from neuronrank.windows import Windows, read_windows

Work = Callable[[], Any]
MODEL, TOKENS, PARAMS = Path("artifacts/model"), Path("artifacts/tokens"), Path("params.yaml")
PER_BATCH = 4


def calibration(n_windows: int) -> Windows:
    """Return the first calibration windows."""
    windows = read_windows(TOKENS / "calibration/windows.safetensors")
    return Windows(windows.token_ids[:n_windows], windows.header)


def _scratch() -> Path:
    """Return a directory that goes when the process ends."""
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    return Path(directory.name)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _synchronised(work: Work) -> Work:
    def run() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def forward(n_windows: int) -> Work:
    """Run the calibration windows through the model's decoder, in bfloat16, and keep nothing."""
    model = load_model(open_model(MODEL), torch.bfloat16, _device())
    ids = torch.from_numpy(calibration(n_windows).token_ids).long().to(_device())
    base: Any = model
    base = base.base_model

    @torch.no_grad()
    def work() -> None:
        for first in range(0, len(ids), PER_BATCH):
            base(ids[first : first + PER_BATCH], use_cache=False)

    with torch.no_grad():
        base(ids[:PER_BATCH], use_cache=False)
    return _synchronised(work)


def _collect(n_windows: int, changes: dict[str, Any]) -> Work:
    model, windows = open_model(MODEL), calibration(n_windows)
    section = {**lookup(read_params(PARAMS), "collect"), "dtype": "bfloat16", "documents_per_batch": PER_BATCH}
    options = validate(CollectParams, {**section, **changes}, "collect")
    scratch = _scratch()

    def work(used: Windows = windows, name: str = "statistics") -> dict[str, Any]:
        collect_statistics(model, used, options, scratch / name)
        size = sum(path.stat().st_size for path in (scratch / name).rglob("*") if path.is_file())
        return {"artifact_mib": size / 2**20}

    work(Windows(windows.token_ids[:1], windows.header), "first")
    return work


def collect_wanda(n_windows: int) -> Work:
    """Collect what Wanda reads, reading weights and writing the artifact included."""
    return _collect(n_windows, {"profile": "wanda"})


def collect_default(n_windows: int) -> Work:
    """Collect all statistics of the default profile."""
    return _collect(n_windows, {"profile": "standard"})


def score_slowest(_n_windows: int) -> Work:
    """Score every recipe of params.yaml from the statistics that the pipeline made; the slowest counts."""
    import time

    recipes = {name: read_recipe(value, name) for name, value in lookup(read_params(PARAMS), "recipes").items()}
    scratch = _scratch()

    def work(chosen: Iterable[str] = tuple(recipes)) -> dict[str, Any]:
        seconds = {}
        for name in chosen:
            recipe = recipes[name]
            begin = time.perf_counter()
            statistics = Statistics(Path("artifacts/statistics"))
            factors = compute_factors(statistics, recipe)
            write_scores(scratch / f"{name}.safetensors", factors, score_header(statistics.manifest, name, recipe))
            seconds[name] = time.perf_counter() - begin
        return {"seconds": max(seconds.values()), "by_recipe": seconds}

    work(list(recipes)[:1])
    return work


def prune(_n_windows: int) -> Work:
    """Make Wanda's mask at 50 %, within rows."""
    model, statistics = open_model(MODEL), Statistics(Path("artifacts/statistics"))
    recipe = read_recipe({"attention": {"method": "wanda"}, "mlp": {"method": "wanda"}}, "wanda")
    factors, header = compute_factors(statistics, recipe), score_header(statistics.manifest, "wanda", recipe)
    pattern = read_pattern({"rule": "unstructured", "sparsity": 0.5}, "pattern")
    out = _scratch() / "mask.safetensors"

    def work(used: Pattern = pattern) -> dict[str, Any]:
        return {"modules": len(make_masks(model, factors, header, used, "bench", out)["modules"])}

    work(read_pattern({"rule": "unstructured", "sparsity": 0.5, "attention": False, "pruning_last": 1}, "pattern"))
    return work


def sweep(_n_windows: int) -> Work:
    """Score every recipe of params.yaml and make its mask at 50 %: of whole neurons where it ranks those alone."""
    model, params = open_model(MODEL), read_params(PARAMS)
    recipes = {name: read_recipe(value, name) for name, value in lookup(params, "recipes").items()}
    patterns = [read_pattern(lookup(params, f"patterns.{name}"), name) for name in ("50pct", "neurons50")]
    out = _scratch()

    def work() -> dict[str, Any]:
        for name, recipe in recipes.items():
            statistics = Statistics(Path("artifacts/statistics"))
            factors, header = compute_factors(statistics, recipe), score_header(statistics.manifest, name, recipe)
            pattern = next(pattern for pattern in patterns if why_unfit(recipe, pattern) is None)
            make_masks(model, factors, header, pattern, "bench", out / f"{name}.safetensors")
        return {"recipes": len(recipes)}

    return work


def copy_weights(_n_windows: int) -> Work:
    """Read the weights that `prune` masks with safetensors, tensor by tensor, and write them."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    artifact = open_model(MODEL)
    (path,) = artifact.checkpoint().shards
    out = _scratch() / "copy.safetensors"

    def work() -> None:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys() if "_proj" in name}  # noqa: SIM118
        save_file(tensors, out)

    work()
    return work


def _loaded_for_evaluation() -> tuple[nn.Module, np.ndarray]:
    model: ModelArtifact = open_model(MODEL)
    (windows, *_) = sorted((TOKENS / "evaluation").glob("*.safetensors"))
    network, ids = load_model(model, torch.bfloat16, _device()), read_windows(windows).token_ids
    window_losses(network, ids[:PER_BATCH], PER_BATCH, lambda _n: None)
    return network, ids


def evaluate(_n_windows: int) -> Work:
    """Measure the loss of every evaluation window of one text, as the stage does."""
    network, ids = _loaded_for_evaluation()
    return _synchronised(lambda: window_losses(network, ids, PER_BATCH, lambda _n: None))


def bare_evaluation(_n_windows: int) -> Work:
    """Measure the mean loss of the same windows by the shortest loop: logits and one cross-entropy per batch."""
    network, ids = _loaded_for_evaluation()

    @torch.no_grad()
    def work() -> None:
        for first in range(0, len(ids), PER_BATCH):
            batch = torch.from_numpy(ids[first : first + PER_BATCH]).long().to(_device())
            logits = network(batch, use_cache=False).logits
            nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten()).item()

    return _synchronised(work)


def llm_compressor_wanda(n_windows: int) -> Work:
    """Prune by llm-compressor's one-shot Wanda at 50 %, calibrated on the same tokens; needs it installed beside."""
    from datasets import Dataset
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.pruning import WandaPruningModifier  # type: ignore[import-not-found]

    artifact, tokens = open_model(MODEL), calibration(n_windows).token_ids
    rows = {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}

    def work() -> None:
        model = load_model(artifact, torch.bfloat16, _device())
        oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=WandaPruningModifier(sparsity=0.5, mask_structure="0:0", targets="__ALL_PRUNABLE__"),
            max_seq_length=tokens.shape[1],
            num_calibration_samples=n_windows,
        )

    return work


ITEMS: dict[str, Callable[[int], Work]] = {
    "forward": forward,
    "collect_wanda": collect_wanda,
    "collect_default": collect_default,
    "score_slowest": score_slowest,
    "prune": prune,
    "sweep": sweep,
    "copy_weights": copy_weights,
    "evaluate": evaluate,
    "bare_evaluation": bare_evaluation,
}
BESIDE_ITEMS: dict[str, Callable[[int], Work]] = {"llm_compressor_wanda": llm_compressor_wanda}
"""What needs packages that the project does without."""
