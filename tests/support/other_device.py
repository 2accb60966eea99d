"""A second device, emulated: finds on a CPU where code would mix up tensors of a GPU's with the CPU's.

Every tensor that is made on or moved to `DEVICE` is marked, and stays where it is. What is computed from
marked tensors is marked, and an operation between marked and unmarked ones is refused, as torch refuses it
on a GPU. What it can't see: what happens below Python, as in a backward pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("xpu:0")
"""A kind that no branch of ours asks for; what does ask, asks for cuda."""

ANYWHERE = {"copy_", "to", "type_as", "index_copy_", "data", "__set__"}
"""What takes tensors of two devices."""
READ_BY_INDEX = {"__getitem__", "__setitem__", "index_put_", "index_put"}
"""What takes an index of the CPU's for a tensor elsewhere."""


class OtherDevice(TorchFunctionMode):
    """While it is on, `DEVICE` is there."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return DEVICE if _place(args[0]) else func(*args)
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return False
        places = {place for tensor in _tensors([args, named]) if (place := _place(tensor)) is not None}
        asked = _asked(name, args, named)
        plain = [torch.device("cpu") if _is_device(value) else value for value in args]
        found = func(*plain, **{k: torch.device("cpu") if _is_device(v) else v for k, v in named.items()})
        if name == "numpy" and True in places:
            raise TypeError("numpy() of a tensor on the other device")
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            _mark(args[0], _place(args[1]))
            return found
        if asked is not None:
            return _moved(found, asked, args)
        self._check(name, args, places)
        own = _place(args[0]) if args and isinstance(args[0], Tensor) and name in READ_BY_INDEX else None
        _mark(found, (True in places) if own is None else own)
        return found

    def _check(self, name: str, args: Sequence[Any], places: set[bool]) -> None:
        sized = {_place(t) for t in _tensors(args) if t.dim() > 0} - {None}
        if len(sized) < 2 or name in ANYWHERE:
            return
        if name in READ_BY_INDEX and _place(args[0]):
            return
        raise RuntimeError(f"{name}: tensors on two devices")


def _asked(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool | None:
    """Whether the result is to lie on the other device; None: nobody said."""
    if name == "cpu":
        return False
    given = [value for value in (*args, *named.values()) if _is_device(value)]
    if given:
        return torch.device(given[0]).type == DEVICE.type
    if name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
        return _place(args[1])
    return None


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] == DEVICE.type)


def _moved(found: Any, where: bool, args: Sequence[Any]) -> Any:
    if isinstance(found, Tensor) and any(found is value for value in args) and _place(found) != where:
        found = found.view_as(found)  # moved, it is another tensor
    _mark(found, where)
    return found


def _place(tensor: Any) -> bool | None:
    """Whether it lies on the other device; None: it was there before anyone looked."""
    return getattr(tensor, "_elsewhere", None) if isinstance(tensor, Tensor) else None


def _mark(found: Any, where: bool | None) -> None:
    for tensor in _tensors([found]):
        tensor._elsewhere = where  # type: ignore[attr-defined]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _tensors(value)


def put(model: torch.nn.Module) -> None:
    """Move a model to `DEVICE`."""
    for tensor in (*model.parameters(), *model.buffers()):
        _mark(tensor, True)
