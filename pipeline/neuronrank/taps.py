"""Hooks that hand the tapped tensors of one decoder layer to whoever counts them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from neuronrank.errors import MismatchError
from neuronrank.models import ModelLayout, TapPoint

OnTap = Callable[[str, Tensor], None]


@contextmanager
def tapped(layer: nn.Module, layout: ModelLayout, on_tap: OnTap) -> Iterator[None]:
    """Call `on_tap(name, tensor)` for every tap of the layout, each time the layer runs.

    Raises:
        MismatchError: the layer has no submodule where the layout says there is one.
    """
    handles = []
    try:
        for name, point in layout.taps.items():
            handles.append(_hook(layer, name, point, on_tap))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: nn.Module, name: str, point: TapPoint, on_tap: OnTap) -> Any:
    try:
        module = layer.get_submodule(point.path)
    except AttributeError as err:
        raise MismatchError(f"tap {name!r}: {type(layer).__name__} has no submodule {point.path!r}") from err

    if point.side == "input":

        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            on_tap(name, inputs[0])

        return module.register_forward_pre_hook(before)

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        on_tap(name, output)

    return module.register_forward_hook(after)
