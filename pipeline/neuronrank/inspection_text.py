"""The lines that `neuronrank inspect` prints of a description."""

from typing import Any

from neuronrank.inspecting import Description

_TAPS = ("attn_in", "mlp_in", "mlp_mid")


def inspection_lines(description: Description) -> list[str]:
    """Return a description as text: fields first, then tables of arrays and layers."""
    tables = {"arrays", "layers", "texts"}
    if description["artifact"] == "masks":
        tables |= {"parts"}
    lines = _fields({key: value for key, value in description.items() if key not in tables})
    if "arrays" in description:
        lines += ["", *_arrays(description["arrays"]), "", *_layers(description["layers"])]
    for text, found in description.get("texts", {}).items():
        lines.append(
            f"text {text}: {found['n_windows']} windows, {found['nat_per_token']:.4f} nat/token, "
            f"perplexity {found['perplexity']:.2f}"
        )
    if description["artifact"] == "masks":
        for part, count in description["parts"].items():
            lines.append(f"{part}: removed {count['removed']}/{count['weights']} ({count['sparsity']:.2%})")
    return lines


def _fields(values: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_fields(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1 else str(value)


def _arrays(arrays: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'array':<32}{'shape':<24}{'type':<9}{'units':<18}{'stored MiB':>11}{'raw MiB':>11}"]
    for array in arrays:
        shape = " x ".join(map(str, array["shape"]))
        lines.append(
            f"{array['path']:<32}{shape:<24}{array['dtype']:<9}{array['units']:<18}"
            f"{array['stored_mib']:>11.3f}{array['raw_mib']:>11.3f}"
        )
    return lines


def _layers(layers: list[dict[str, Any]]) -> list[str]:
    columns = [*(f"rms {tap}" for tap in _TAPS), "mean |a|", "a > 0", "DF min", "median", "max", "topics"]
    lines = [f"{'layer':>5}" + "".join(f"{name:>13}" for name in columns)]
    for layer in layers:
        frequency, topics = layer["neuron_df"] or {}, layer["topics"]
        cells = [
            *(_cell(layer["rms"][tap], ".4g") for tap in _TAPS),
            _cell(layer["neuron_mean_abs"], ".4g"),
            _cell(layer["neuron_positive_share"], ".1%"),
            *(_cell(frequency.get(name), "g") for name in ("min", "median", "max")),
            f"{topics['non_empty']}/{topics['of']}" if topics else "-",
        ]
        lines.append(f"{layer['layer']:>5}" + "".join(f"{cell:>13}" for cell in cells))
    return [*lines, "mean |a|, a > 0 and DF (documents in which a neuron is active) are of the tap neuron"]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
