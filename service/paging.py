"""Lists by cursor: `after` an id, `limit` entries, and whether there are more."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """One page of rows."""

    items: Sequence[Row]
    has_more: bool


def page(
    s: Session,
    query: Select[Row],
    key: InstrumentedAttribute[Any],
    after: Any | None,
    limit: int,
    *,
    newest_first: bool = False,
) -> Page[Row]:
    """The rows of `query` that come after `after` in the order of `key`."""
    if after is not None:
        query = query.where(key < after if newest_first else key > after)
    rows = list(s.scalars(query.order_by(key.desc() if newest_first else key).limit(limit + 1)))
    return Page(items=rows[:limit], has_more=len(rows) > limit)
