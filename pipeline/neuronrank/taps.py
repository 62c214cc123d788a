"""Hooks that hand the tapped tensors of one decoder layer to whoever counts them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from neuronrank.errors import MismatchError
from neuronrank.experts import tapped_experts
from neuronrank.models import ModelLayout, TapPoint
from neuronrank.module_views import Rows

OnTap = Callable[[str, Tensor, Tensor | None], None]


@contextmanager
def tapped(
    layer: nn.Module, layout: ModelLayout, sections: Mapping[tuple[str, str], Rows], on_tap: OnTap
) -> Iterator[None]:
    """Call `on_tap(name, values, tokens)` for every tap, each time the layer runs.

    Args:
        layer: a decoder layer.
        layout: of its architecture.
        sections: (path, section) -> which channels of that module's output are the section's.
        on_tap: gets (…, C) values; of an expert (n, C), and which of the tokens side by side those are, (n,), which
            is None where they are all.

    Raises:
        MismatchError: the layer has no submodule where the layout says there is one.
    """
    handles = []
    experts = tapped_experts(layer.get_submodule(layout.experts), on_tap) if layout.experts else nullcontext()
    try:
        for name, point in layout.taps.items():
            rows = None if point.section is None else sections[point.path, point.section]
            handles.append(_hook(layer, name, point, rows, on_tap))
        with experts:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: nn.Module, name: str, point: TapPoint, rows: Rows | None, on_tap: OnTap) -> Any:
    try:
        module = layer.get_submodule(point.path)
    except AttributeError as err:
        raise MismatchError(f"tap {name!r}: {type(layer).__name__} has no submodule {point.path!r}") from err

    if point.side == "input":

        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            on_tap(name, inputs[0], None)

        return module.register_forward_pre_hook(before)

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        on_tap(name, output if rows is None else _channels(output, rows), None)

    return module.register_forward_hook(after)


def _channels(values: Tensor, rows: Rows) -> Tensor:
    """Return (…, c) of (…, C): the channels of one of several modules that share a weight."""
    repeated = values.reshape(*values.shape[:-1], -1, rows.period)
    return repeated[..., rows.offset : rows.offset + rows.block].flatten(-2)
