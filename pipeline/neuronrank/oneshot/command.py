"""The command `neuronrank run`: flags as single-script pruners have them, `-` and `_` alike."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from neuronrank.errors import NeuronrankError, ParamsError
from neuronrank.oneshot.flags import METHOD_FLAGS, in_flags
from neuronrank.params import read_yaml
from neuronrank.profiles import PROFILES


def _method_options(function: Any) -> Any:
    for flag, (_, kind, text) in reversed(METHOD_FLAGS.items()):
        function = click.option(f"--{flag}", type=kind, default=None, help=text)(function)
    return function


@click.command(context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
@click.option("--model", required=True, help="A Hugging Face directory, a .gguf file, or organisation/name@commit.")
@click.option("--prune-method", required=True, help="A method of `neuronrank methods`, or hybrid.")
@click.option("--sparsity-ratio", type=float, help="Share to remove; 0.5 unless an n:m pattern says it.")
@click.option("--sparsity-type", help="unstructured, structured, or n:m (n of every m are kept).")
@click.option("--use-variant", "--use-variance", "use_variant", is_flag=True, help="Wanda's variant of the mask rule.")
@click.option("--group", type=click.Choice(["row", "module", "layer", "global"]), help="What a weight competes with.")
@click.option("--nsamples", type=click.IntRange(min=1), default=128, show_default=True, help="Calibration windows.")
@click.option("--seqlen", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens of each window.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draw and of topics.")
@click.option("--text", help="Files to calibrate on (a glob); Wikipedia articles when absent.")
@click.option("--eval-text", help="Files to measure perplexity on; other Wikipedia articles when absent.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@click.option("--profile", type=click.Choice(list(PROFILES)), default="standard", show_default=True)
@click.option("--pruning-last", type=click.IntRange(min=1), help="Prune only the MLPs of the last so many layers.")
@click.option("--nr-include-attention", "include_attention", is_flag=True, help="Prune attention as well.")
@click.option("--nr-skip-attention", "skip_attention", is_flag=True, help="Leave attention dense.")
@click.option("--nr-skip-mlp", "skip_mlp", is_flag=True, help="Leave the MLP dense.")
@click.option("--nr-prune-lm-head", "prune_lm_head", is_flag=True, help="Prune the output head by magnitude.")
@click.option("--untie-lm-head", is_flag=True, help="Prune a copy of a head that is tied to the embeddings.")
@click.option("--hybrid-mlp-method", help="neuronrank_tfidf or neuronrank_old.")
@click.option("--preset", help="Of neuronrank_tfidf: conservative, balanced or aggressive.")
@click.option("--threshold", help="A number: theta of neuronrank_old. Or pooled, relative, sign.")
@_method_options
@click.option("--nr-mahalanobis-pooled", is_flag=True, help="Divide by the total variance.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other parameter of the method.")
@click.option("--save", type=click.Path(path_type=Path), help="Directory for mask, factors and summary.json.")
@click.option("--save-model", type=click.Path(path_type=Path), help="Directory for the pruned model.")
@click.option("--statistics", type=click.Path(exists=True, path_type=Path), help="A statistics artifact to use.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where statistics are kept between runs.")
@click.option("--eval-perplexity", is_flag=True, help="Measure perplexity, dense and pruned.")
@click.option("--eval-zero-shot", is_flag=True, help="Measure the usual seven zero-shot tasks (extra `zeroshot`, hub).")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
def run(**options: Any) -> None:
    """Prune a model in one command; statistics are collected once and reused by later runs.

    Example: neuronrank run --model artifacts/model --prune-method wanda --sparsity-ratio 0.5 --nsamples 16
    """
    from neuronrank.oneshot.execution import Outputs, execute
    from neuronrank.oneshot.request import Flags, read_request

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    given = {name: options.pop(flag.replace("-", "_")) for flag, (name, _, _) in METHOD_FLAGS.items()}
    method_params = {name: value for name, value in given.items() if value is not None}
    if options.pop("nr_mahalanobis_pooled"):
        method_params["pooled"] = True
    for setting in options.pop("settings"):
        name, value = _setting(setting)
        if name == "method" or name in method_params:
            raise ParamsError(f"--set {setting}: {name} is given by a flag already")
        method_params[name] = value
    if options["eval_text"] and not options["eval_perplexity"]:
        raise ParamsError("--eval-text: nothing is measured on it; add --eval-perplexity, or leave it out")
    outputs = Outputs(
        save=options.pop("save"),
        save_model=options.pop("save_model"),
        statistics=options.pop("statistics"),
        cache=options.pop("cache_dir"),
        perplexity=options.pop("eval_perplexity"),
        zero_shot=options.pop("eval_zero_shot"),
    )
    as_json = options.pop("as_json")
    try:
        summary = execute(read_request(Flags(**options, method_params=method_params)), outputs)
    except NeuronrankError as err:
        raise type(err)(in_flags(str(err))) from err
    if as_json:
        click.echo(json.dumps(summary, indent=2, sort_keys=True))


def _setting(setting: str) -> tuple[str, Any]:
    name, equals, value = setting.partition("=")
    if not equals:
        raise ParamsError(f"--set {setting!r}: expected NAME=VALUE, for example --set smooth=true")
    return name.replace("-", "_"), read_yaml(value, f"--set {setting!r}")
