"""A question on its way, and a version's questions that are under way."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from workers.predictor.errors import PredictorError
from workers.predictor.questions import Answer, Asked, Question, Weights

L = TypeVar("L")


@dataclass(eq=False, slots=True)
class Ask:
    """One question to one version, and all who wait for its answer.

    Attributes:
        asked: what the engine knows it by; None asks for nothing but that the weights be at hand.
        alone: it was under way when something broke; so that we see whether it is to blame.
    """

    weights: Weights
    asked: Asked | None
    alone: bool = False
    _waiters: "list[asyncio.Future[Answer | None]]" = field(default_factory=list)

    @classmethod
    def of(cls, weights: Weights, question: Question | None, max_tokens: int) -> "Ask":
        return cls(weights, None if question is None else Asked(question, max_tokens))

    @property
    def key(self) -> Hashable:
        """Equal for questions with the same answer."""
        if self.asked is None:
            return self.weights
        return self.weights, self.asked.question, self.asked.max_tokens

    @property
    def done(self) -> bool:
        """Nobody waits for it: it is answered, or all have left."""
        return all(waiter.done() for waiter in self._waiters)

    def wait(self) -> "asyncio.Future[Answer | None]":
        waiter: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def finish(self, result: Answer | PredictorError | None) -> None:
        for waiter in self._waiters:
            if waiter.done():
                continue
            if isinstance(result, PredictorError):
                waiter.set_exception(result)
            else:
                waiter.set_result(result)


@dataclass(eq=False, slots=True)
class Line(Generic[L]):
    """A version's weights, held for as long as it has questions under way, or has just been read."""

    loaded: L
    under_way: dict[Asked, Ask] = field(default_factory=dict)
    had_a_turn: bool = False
