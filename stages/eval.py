"""Measure the perplexity of the dense model or of a masked one, and its zero-shot accuracy where tasks are named."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoTokenizer

from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.comparison import perplexity, perplexity_ratio
from neuronrank.evaluation import EvalParams, load_model, shared_losses
from neuronrank.losses import read_losses, read_losses_header, require_comparable, write_losses
from neuronrank.mask_store import MaskFile
from neuronrank.params import lookup, read_params, validate
from neuronrank.provenance import in_words, libraries, made_from, versions
from neuronrank.ranks import joined
from neuronrank.seals import FIELD
from neuronrank.windows import Windows, read_evaluation_windows
from neuronrank.zero_shot import evaluate_tasks, load_tasks
from stages._command import InDirectory, InFile, Metrics, OutPath, progress_bar, stage_command


@stage_command(
    "eval",
    "python -m stages.eval",
    "--model artifacts/model",
    "--tokens artifacts/tokens/evaluation",
    "--mask artifacts/masks/wanda/50pct.safetensors",
    "--dense artifacts/losses/dense.safetensors",
    "--losses artifacts/losses/wanda/50pct.safetensors",
    "--metrics metrics/eval/wanda/50pct.json",
)
@click.option("--model", type=InDirectory, required=True, help="What fetch left.")
@click.option("--tokens", type=InDirectory, required=True, help="The evaluation windows.")
@click.option("--mask", type=InFile, help="What prune wrote; none measures the dense model.")
@click.option("--dense", type=InFile, help="The dense model's losses, to compare with; needed with --mask.")
@click.option("--losses", type=OutPath, required=True, help="Where to write the loss of every window.")
def main(model: Path, tokens: Path, mask: Path | None, dense: Path | None, losses: Path, params: Path) -> Metrics:
    """Measure perplexity on every evaluation text and its ratio to the dense model's, and the tasks of zero_shot.

    Started by `torchrun --nproc-per-node K -m stages.eval …`, every process takes a share of the windows; tasks do not.
    """
    if (mask is None) != (dense is None):
        raise click.UsageError("--mask and --dense go together")
    options = validate(EvalParams, lookup(read_params(params), "eval"), "eval")
    opened = open_model(model)
    masks = None if mask is None else MaskFile(mask)
    if masks is not None:
        masks.require_model(opened.fingerprint, model)
    texts = read_evaluation_windows(tokens, opened.tokenizer_sha256)
    tasks = load_tasks(options.zero_shot)
    if tasks:
        opened.require_its_tokenizer()
        tokenizer = AutoTokenizer.from_pretrained(opened.weights_directory, trust_remote_code=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with joined() as ranks:
        network = load_model(opened, getattr(torch, options.dtype), device, masks)
        measured = {}
        for text, windows in texts.items():
            with progress_bar(len(windows.token_ids), f"windows of {text}") as advance:
                measured[text] = shared_losses(network, windows.token_ids, options.windows_per_batch, advance, ranks)
        if not ranks.first:
            return {}
    header = _header(opened, masks, texts, options, device)
    metrics: Metrics = {"perplexity": {text: round(perplexity(values), 4) for text, values in measured.items()}}
    compared = {}
    if masks is not None and dense is not None:
        header["mask"] = {"recipe": masks.header["recipe"], "pattern": masks.header["pattern"]}
        dense_header = read_losses_header(dense)
        require_comparable(losses, header, dense, dense_header)
        reference, compared = read_losses(dense), {"dense_losses": dense_header[FIELD]}
        ratios = {text: perplexity_ratio(values, reference[text], options.seed) for text, values in measured.items()}
        metrics["ratio_to_dense"] = {
            text: {name: round(value, 4) for name, value in asdict(ratio).items()} for text, ratio in ratios.items()
        }
        metrics["sparsity"] = {name: round(share, 6) for name, share in masks.header["sparsity"].items()}
    if tasks:
        metrics["zero_shot"] = evaluate_tasks(network, tokenizer, tasks, options.zero_shot)
    seal = write_losses(losses, measured, header)
    metrics["made_from"] = {**header["made_from"], **compared, "losses": seal}
    if masks is not None:
        metrics["provenance"] = in_words(masks.header)
    used = libraries(header["versions"])
    metrics["evaluation"] = {"dtype": options.dtype, "device": device.type, "libraries": used}
    return metrics


def _header(
    model: ModelArtifact, masks: MaskFile | None, texts: dict[str, Windows], options: EvalParams, device: torch.device
) -> dict[str, Any]:
    evaluated = {f"evaluation/{name}": windows.sha256 for name, windows in texts.items()}
    chain = {"model": model.fingerprint} if masks is None else made_from(masks.header, "masks")
    return {
        "made_from": {**chain, **evaluated},
        "model": {"fingerprint": model.fingerprint, "source": model.description["source"]},
        "dtype": options.dtype,
        "device": device.type,
        "versions": versions(),
        "texts": {
            name: {
                "n_windows": len(windows.token_ids),
                "window_tokens": windows.token_ids.shape[1],
                "source": windows.header["source"],
                "sha256": windows.sha256,
            }
            for name, windows in texts.items()
        },
    }


if __name__ == "__main__":
    main()
