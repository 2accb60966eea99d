"""Who waits, what is answered next, and with whom: one batch at a time, of one version only.

The event loop owns all that is written here, so there is no lock. Two threads work for it: the
loader reads and verifies weights, one version at a time; the compute thread answers batches. While
a version's weights are being read, the others' questions go on being answered.

A batch is the oldest ask whose weights are at hand and the asks that share its weights and token
limit, oldest first. Whatever else arrives, an ask only ever waits for older ones: no version starves.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

import structlog

from workers.predictor.errors import BadQuestion, EngineLost, Overloaded, PredictorError
from workers.predictor.questions import Answer, Question, Weights
from workers.predictor.shelf import Shelf, Sized

log = structlog.get_logger(__name__)

L = TypeVar("L", bound=Sized)


class Engine(Protocol[L]):
    """What reads weights and answers with them. `L` is a version's verified weights in memory."""

    def load(self, weights: Weights) -> L:
        """Read and verify a version's weights. Called on the loader thread only."""

    def answer(
        self, loaded: L, questions: Sequence[Question], max_tokens: int
    ) -> Sequence[Answer | BadQuestion]:
        """Answer with exactly those weights. Called on the compute thread only.

        Raises:
            EngineLost: this process can't answer any more.
        """


@dataclass(eq=False, slots=True)
class _Ask:
    """A request's questions, or a batchful of them: answered together, or failed together."""

    weights: Weights
    max_tokens: int
    questions: Sequence[Question]
    answers: asyncio.Future[list[Answer]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def fail(self, error: Exception) -> None:
        if not self.answers.done():
            self.answers.set_exception(error)

    def finish(self, results: Sequence[Answer | BadQuestion]) -> None:
        if self.answers.done():
            return
        problem = next((result for result in results if isinstance(result, BadQuestion)), None)
        if problem is not None:
            self.answers.set_exception(problem)
        else:
            self.answers.set_result([result for result in results if isinstance(result, Answer)])


class Batcher(Generic[L]):
    """Made and used inside one event loop; `serve` must run for anything to be answered."""

    def __init__(
        self, engine: Engine[L], shelf: Shelf[Weights, L], *, max_batch: int, max_waiting: int
    ) -> None:
        self._engine = engine
        self._shelf = shelf
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: list[_Ask] = []  # in order of arrival; none is done
        self._computing: list[_Ask] = []
        self._admitted = 0  # questions of requests not yet answered
        self._loading: asyncio.Task[None] | None = None
        self._loaded_ahead = False
        self._work = asyncio.Event()
        self._stopped = False
        self._batch_seconds = 0.0
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")

    async def answer(self, weights: Weights, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        """The answers, in order. Cancelling this drops what has not been computed.

        Raises:
            Overloaded: refused at once, since the queue is full.
            PredictorError: whatever else is wrong with the questions or the weights.
        """
        self._admit(len(questions))
        chunks = range(0, max(1, len(questions)), self._max_batch)
        asks = [_Ask(weights, max_tokens, questions[at : at + self._max_batch]) for at in chunks]
        self._admitted += len(questions)
        self._waiting += asks
        self._load_oldest_missing()
        self._work.set()
        try:
            parts = await asyncio.gather(*(ask.answers for ask in asks))
        finally:
            self._admitted -= len(questions)
            for ask in asks:
                ask.answers.cancel()
            self._waiting = [ask for ask in self._waiting if not ask.answers.done()]
        return [answer for part in parts for answer in part]

    async def warm(self, weights: Weights) -> None:
        """Read the weights now, so that the first question need not wait for them."""
        await self.answer(weights, (), max_tokens=0)

    async def serve(self) -> None:
        """Answer until cancelled; ends by itself only with an error after which nothing can be answered."""
        try:
            while True:
                self._computing = self._next_batch()
                self._loaded_ahead = False
                self._load_oldest_missing()
                if self._computing:
                    # All of a batch name the same weights; no others are in reach of its answers.
                    await self._answer(self._shelf.take(self._computing[0].weights), self._computing)
                else:
                    self._work.clear()
                    await self._work.wait()
        finally:
            self._stop()

    def _admit(self, count: int) -> None:
        if self._stopped:
            raise _restarting()
        if count > self._max_waiting:
            raise BadQuestion(
                f"{count} prompts are too many for one request; send at most {self._max_waiting}."
            )
        if self._admitted + count > self._max_waiting:
            batches = self._admitted / self._max_batch
            seconds = min(60, max(1, math.ceil(batches * self._batch_seconds)))
            raise Overloaded("Too many prompts are waiting; ask again later.", retry_after=seconds)

    def _next_batch(self) -> list[_Ask]:
        first = next((ask for ask in self._waiting if ask.weights in self._shelf), None)
        if first is None:
            return []
        room = self._max_batch

        def fits(ask: _Ask) -> bool:
            nonlocal room
            room -= len(ask.questions)
            return room >= 0

        alike = (
            ask
            for ask in self._waiting
            if ask.weights == first.weights and ask.max_tokens == first.max_tokens
        )
        batch = list(takewhile(fits, alike))
        self._waiting = [ask for ask in self._waiting if ask not in batch]
        return batch

    async def _answer(self, loaded: L, batch: list[_Ask]) -> None:
        try:
            await self._answer_together(loaded, batch)
        except EngineLost:
            raise
        except Exception as error:
            if len(batch) == 1:
                self._blame(batch[0], error)
            else:  # one of them may be to blame; the others must not pay for it
                for ask in batch:
                    await self._answer(loaded, [ask])

    async def _answer_together(self, loaded: L, batch: list[_Ask]) -> None:
        batch = [ask for ask in batch if not ask.answers.done()]
        if not batch:
            return
        questions = [question for ask in batch for question in ask.questions]
        started = time.monotonic()
        results = await asyncio.get_running_loop().run_in_executor(
            self._compute, self._engine.answer, loaded, questions, batch[0].max_tokens
        )
        self._batch_seconds = time.monotonic() - started
        rest = iter(results)
        for ask in batch:
            ask.finish([next(rest) for _ in ask.questions])

    def _blame(self, ask: _Ask, error: Exception) -> None:
        if not isinstance(error, PredictorError):
            log.error("ask_failed", weights=ask.weights, prompts=len(ask.questions), exc_info=error)
            error = PredictorError("This version could not answer; the predictor's log says why.")
        ask.fail(error)

    def _load_oldest_missing(self) -> None:
        # One load for each batch: were there more, a small shelf would lose weights before their turn.
        if self._loading is not None or self._loaded_ahead or self._stopped:
            return
        missing = next((ask.weights for ask in self._waiting if ask.weights not in self._shelf), None)
        if missing is not None:
            self._loading = asyncio.create_task(self._load(missing))

    async def _load(self, weights: Weights) -> None:
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(
                self._loader, self._engine.load, weights
            )
            self._shelf.put(weights, loaded)
            self._loaded_ahead = True
        except Exception as error:
            for ask in self._waiting:
                if ask.weights == weights:
                    self._blame(ask, error)
            self._waiting = [ask for ask in self._waiting if not ask.answers.done()]
        finally:
            self._loading = None
            self._load_oldest_missing()
            self._work.set()

    def _stop(self) -> None:
        self._stopped = True
        for ask in [*self._computing, *self._waiting]:
            ask.fail(_restarting())
        if self._loading is not None:
            self._loading.cancel()
        for thread in (self._loader, self._compute):
            thread.shutdown(wait=False, cancel_futures=True)


def _restarting() -> Overloaded:
    return Overloaded("The predictor is restarting; ask again in a moment.")
