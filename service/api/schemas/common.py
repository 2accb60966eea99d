"""What several nouns' bodies share."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
Item = TypeVar("Item")


class Body(BaseModel):
    """What is taken: nothing unknown, and no number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ListOf(BaseModel, Generic[Item]):
    """One page. The next one begins `after` the last item's id."""

    object: str = "list"
    data: list[Item]
    has_more: bool = Field(description="Whether there are more after these.")


def unix(moment: datetime) -> int:
    """Unix seconds."""
    return int(moment.timestamp())


def unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix(moment)
