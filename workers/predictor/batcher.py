"""Who waits, what goes on next, and with whom: one turn at a time, of one version only.

The event loop owns all that is written here, so there is no lock. Two threads work for it: the
loader reads and verifies weights, one version at a time; the compute thread takes turns. While a
version's weights are being read, the others' questions go on being answered.

A turn takes one version's questions a step further: those that are under way, and those that join
now, oldest first; whoever is done is told at once. The version that has waited longest for a turn has
the next one, so none starves. Equal questions to one version are one, with several who wait for it.
"""

import asyncio
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, Protocol, TypeVar

import structlog

from workers.predictor.asks import Ask, Line
from workers.predictor.errors import EngineLost, Overloaded, PredictorError
from workers.predictor.questions import Answer, Asked, Question, Weights
from workers.predictor.room import Room
from workers.predictor.shelf import Shelf, Sized

HELD_BESIDES = 2
"""Versions under way that the shelf has given up, at most, before another is read."""
REMEMBERED = 1000
"""Versions whose last turn is remembered."""

log = structlog.get_logger(__name__)

L = TypeVar("L", bound=Sized)


class Engine(Protocol[L]):
    """What reads weights and answers with them. `L` is a version's verified weights in memory."""

    def load(self, weights: Weights) -> L:
        """Read and verify a version's weights. Called on the loader thread only."""

    def turn(
        self, loaded: L, joining: Sequence[Asked], leaving: Sequence[Asked]
    ) -> Sequence[tuple[Asked, Answer | PredictorError]]:
        """Go a step further with exactly those weights; what is answered by now. On the compute thread only.

        What has joined is under way until it is answered or leaves; after an error, nothing is.

        Raises:
            EngineLost: this process can't answer any more.
        """


class Batcher(Generic[L]):
    """Made and used inside one event loop; `serve` must run for anything to be answered."""

    def __init__(self, engine: Engine[L], shelf: Shelf[Weights, L], *, max_batch: int, room: Room) -> None:
        self._engine = engine
        self._shelf = shelf
        self._max_batch = max_batch
        self._room = room
        self._asks: dict[Hashable, Ask] = {}  # all that are not done, by key
        self._waiting: list[Ask] = []  # those not under way, in order of arrival
        self._lines: dict[Weights, Line[L]] = {}
        self._turns: dict[Weights, int] = {}  # the number of each version's last turn, in order
        self._turn = 0
        self._loading: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._stopped = False
        self._spent = self._seconds_each = 0.0
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")

    async def answer(self, weights: Weights, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        """The answers, in order. Cancelling this drops what nobody else waits for.

        Raises:
            Overloaded: refused at once, since the queue is full.
            PredictorError: whatever else is wrong with the questions or the weights.
        """
        if self._stopped:
            raise _restarting()
        self._room.enter(questions, self._seconds_each)
        asked = questions if questions else (None,)
        waiters = [self._enqueue(Ask.of(weights, question, max_tokens)) for question in asked]
        self._load_oldest_missing()
        self._work.set()
        try:
            answers = await asyncio.gather(*waiters)
        finally:
            self._room.leave(questions)
            for waiter in waiters:
                waiter.cancel()
            self._forget_done()
        return [answer for answer in answers if answer is not None]

    async def warm(self, weights: Weights) -> None:
        """Read the weights now, so that the first question need not wait for them."""
        await self.answer(weights, (), max_tokens=0)

    async def serve(self) -> None:
        """Answer until cancelled; ends by itself only with an error after which nothing can be answered."""
        try:
            while True:
                weights = self._next()
                if weights is not None:
                    await self._take_turn(weights)
                    self._load_oldest_missing()
                else:
                    self._work.clear()
                    await self._work.wait()
        finally:
            self._stop()

    def _enqueue(self, ask: Ask) -> "asyncio.Future[Answer | None]":
        known = self._asks.get(ask.key)
        if known is None:
            known = self._asks[ask.key] = ask
            self._waiting.append(ask)
        return known.wait()

    def _forget_done(self) -> None:
        self._asks = {key: ask for key, ask in self._asks.items() if not ask.done}
        self._waiting = [ask for ask in self._waiting if not ask.done]

    def _next(self) -> Weights | None:
        """The version that has waited longest for a turn, of those that can have one."""
        waiting = (ask.weights for ask in self._waiting if self._at_hand(ask.weights))
        ready = dict.fromkeys([*waiting, *self._lines])
        return min(ready, key=lambda weights: self._turns.get(weights, -1), default=None)

    def _at_hand(self, weights: Weights) -> bool:
        return weights in self._lines or weights in self._shelf

    async def _take_turn(self, weights: Weights) -> None:
        self._forget_done()
        if weights in self._shelf:
            loaded = self._shelf.take(weights)
            line = self._lines.setdefault(weights, Line(loaded))
        else:
            line = self._lines[weights]
        line.had_a_turn = True
        left = [asked for asked, ask in line.under_way.items() if ask.done]
        for asked in left:
            del line.under_way[asked]
        warmed, joining = self._joining(weights, line)
        self._count_turn(weights)
        started = time.monotonic()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._compute, self._engine.turn, line.loaded, joining, left
            )
        except EngineLost:
            raise
        except Exception as error:
            self._find_who_is_to_blame(line, warmed, error)
        else:
            for ask in warmed:
                ask.finish(None)
            for asked, result in results:
                line.under_way.pop(asked).finish(result)
            self._measure(time.monotonic() - started, len(results))
        self._forget_done()
        if not line.under_way:
            del self._lines[weights]

    def _joining(self, weights: Weights, line: Line[L]) -> tuple[list[Ask], list[Asked]]:
        """Who leaves the queue for this turn: those who only want the weights, and those to be answered."""
        own = [ask for ask in self._waiting if ask.weights == weights]
        if suspects := [ask for ask in own if ask.alone]:
            own = [] if line.under_way else suspects[:1]
        elif any(ask.alone for ask in line.under_way.values()):
            own = []
        warmed = [ask for ask in own if ask.asked is None]
        joining = self._with_room(own, line)
        leaving = {*warmed, *joining}
        self._waiting = [ask for ask in self._waiting if ask not in leaving]
        added = {ask.asked: ask for ask in joining if ask.asked is not None}
        line.under_way |= added
        return warmed, list(added)

    def _with_room(self, own: Sequence[Ask], line: Line[L]) -> list[Ask]:
        """The oldest, to a full batch. Rankings take none of its room: a slice of them is read each turn."""
        room = max(0, self._max_batch - sum(not asked.ranks for asked in line.under_way))
        plain = (ask for ask in own if ask.asked is not None and not ask.asked.ranks)
        ranks = (ask for ask in own if ask.asked is not None and ask.asked.ranks)
        return [*islice(plain, room), *ranks]

    def _count_turn(self, weights: Weights) -> None:
        self._turn += 1
        self._turns.pop(weights, None)
        self._turns[weights] = self._turn
        if len(self._turns) > REMEMBERED:
            del self._turns[next(iter(self._turns))]

    def _measure(self, seconds: float, answered: int) -> None:
        self._spent += seconds
        if answered:
            self._seconds_each += (self._spent / answered - self._seconds_each) / 8
            self._spent = 0.0

    def _find_who_is_to_blame(self, line: Line[L], warmed: list[Ask], error: Exception) -> None:
        """One may be to blame, and the others must not pay for it: all go on, each of them alone."""
        suspects = [ask for ask in (*warmed, *line.under_way.values()) if not ask.done]
        line.under_way.clear()
        if len(suspects) == 1:
            self._blame(suspects[0], error)
            return
        for ask in suspects:
            ask.alone = True
        self._waiting = [*suspects, *self._waiting]

    def _blame(self, ask: Ask, error: Exception) -> None:
        if not isinstance(error, PredictorError):
            log.error("ask_failed", weights=ask.weights, exc_info=error)
            error = PredictorError("This version could not answer; the predictor's log says why.")
        ask.finish(error)

    def _load_oldest_missing(self) -> None:
        # What was read is held until it has had a turn; to read more meanwhile would fill the memory.
        new = any(not line.had_a_turn for line in self._lines.values())
        besides = sum(weights not in self._shelf for weights in self._lines)
        if self._loading is not None or new or besides >= HELD_BESIDES or self._stopped:
            return
        missing = next((ask.weights for ask in self._waiting if not self._at_hand(ask.weights)), None)
        if missing is not None:
            self._loading = asyncio.create_task(self._load(missing))

    async def _load(self, weights: Weights) -> None:
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(
                self._loader, self._engine.load, weights
            )
            self._shelf.put(weights, loaded)
            self._lines[weights] = Line(loaded)
        except Exception as error:
            for ask in self._waiting:
                if ask.weights == weights:
                    self._blame(ask, error)
            self._forget_done()
        finally:
            self._loading = None
            self._load_oldest_missing()
            self._work.set()

    def _stop(self) -> None:
        self._stopped = True
        for ask in self._asks.values():
            ask.finish(_restarting())
        if self._loading is not None:
            self._loading.cancel()
        for thread in (self._loader, self._compute):
            thread.shutdown(wait=False, cancel_futures=True)


def _restarting() -> Overloaded:
    return Overloaded("The predictor is restarting; ask again in a moment.")
