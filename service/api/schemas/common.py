"""What several nouns' bodies share."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticKnownError

Json = dict[str, Any]
Item = TypeVar("Item")

PART = 100


class Body(BaseModel):
    """What is taken: nothing unknown, and no number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)


def in_parts(most: int) -> WrapValidator:
    """Of a long list, no more faults than those of a hundred items: to find all of them can take minutes."""

    def check(value: Any, whole: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, list) or not value:
            return whole(value)
        if len(value) > most:
            context = {"field_type": "List", "max_length": most, "actual_length": len(value)}
            raise PydanticKnownError("too_long", context)
        found: list[Any] = []
        for start in range(0, len(value), PART):
            try:
                found += whole(value[start : start + PART])
            except ValidationError:
                return whole(value[: start + PART])  # again, so that the places are those of the whole list
        return found

    return WrapValidator(check)


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
