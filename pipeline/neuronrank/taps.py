"""Hooks that hand the tapped tensors of one decoder layer to whoever counts them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from neuronrank.errors import MismatchError
from neuronrank.models import TapPoint
from neuronrank.module_views import Rows

OnTap = Callable[[str, Tensor], None]


@contextmanager
def tapped(
    layer: nn.Module, taps: Mapping[str, TapPoint], sections: Mapping[tuple[str, str], Rows], on_tap: OnTap
) -> Iterator[None]:
    """Call `on_tap(name, tensor)` for every tap, each time the layer runs.

    Args:
        layer: a decoder layer.
        taps: of its layout.
        sections: (path, section) -> which channels of that module's output are the section's.
        on_tap: gets (…, C) tensors.

    Raises:
        MismatchError: the layer has no submodule where the layout says there is one.
    """
    handles = []
    try:
        for name, point in taps.items():
            rows = None if point.section is None else sections[point.path, point.section]
            handles.append(_hook(layer, name, point, rows, on_tap))
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
            on_tap(name, inputs[0])

        return module.register_forward_pre_hook(before)

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        on_tap(name, output if rows is None else _channels(output, rows))

    return module.register_forward_hook(after)


def _channels(values: Tensor, rows: Rows) -> Tensor:
    """Return (…, c) of (…, C): the channels of one of several modules that share a weight."""
    repeated = values.reshape(*values.shape[:-1], -1, rows.period)
    return repeated[..., rows.offset : rows.offset + rows.block].flatten(-2)
