"""The verified weights kept in memory, the least recently used given up first."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def n_bytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


class Shelf(Generic[K, V]):
    """At most `max_items` items of at most `max_bytes` together; the newest is kept whatever its size."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    @property
    def n_bytes(self) -> int:
        return self._bytes

    def take(self, key: K) -> V:
        """The item, which is now the most recently used."""
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: K, value: V) -> None:
        replaced = self._items.pop(key, None)
        self._bytes += value.n_bytes - (replaced.n_bytes if replaced is not None else 0)
        self._items[key] = value
        while len(self._items) > 1 and (len(self._items) > self._max_items or self._bytes > self._max_bytes):
            _, given_up = self._items.popitem(last=False)
            self._bytes -= given_up.n_bytes
