"""A piece of work in the child: an order in, a result out, and what it tells on the way."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from service.tables import Phase

PROGRESS_SECONDS = 0.25
Json = dict[str, Any]


class WorkFailed(Exception):
    """The order itself can't be carried out; trying again would end the same way.

    Attributes:
        code: stable, for programs. message: for the user. digest: of the object in the store at fault.
    """

    def __init__(self, code: str, message: str, digest: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.digest = code, message, digest


class Tell:
    """What a piece of work says while it runs. Phases are timed on the monotonic clock."""

    def __init__(self, say: Callable[[Json], None]) -> None:
        self._say = say
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._phase: Phase | None = None
        self._since = time.monotonic()
        self._quiet_until = 0.0

    def phase(self, phase: Phase) -> None:
        self._end_phase()
        self._phase, self._quiet_until = phase, 0.0
        self._say({"said": "phase", "phase": phase})

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Not all of it is told on, only a few times a second."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + PROGRESS_SECONDS
            self._say({"said": "progress", "progress": dict(progress)})

    def seconds(self) -> dict[str, float]:
        """How long each phase took, the last one until now."""
        self._end_phase()
        return dict(self._seconds)

    def _end_phase(self) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self._seconds[self._phase] += now - self._since
        self._since = now


Work = Callable[[Json, Tell], Json]


def storable(value: Any) -> Any:
    """The same without what JSON in PostgreSQL can't hold: NaN, infinities, NUL.

    A model that was trained to pieces yields all of them, and its report is wanted all the more.
    """
    match value:
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.replace("\0", "\ufffd")
        case Mapping():
            return {key: storable(item) for key, item in value.items()}
        case list() | tuple():
            return [storable(item) for item in value]
    return value
