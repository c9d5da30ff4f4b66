"""What every source of orders gives."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """An order's fields and its own time, milliseconds since 1970; 0 where no times are wanted."""

    order: dict[str, str]
    at_ms: int = 0


class Source(Protocol):
    """Orders, the same each time it is iterated, and how many. `str(source)` says which."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...
