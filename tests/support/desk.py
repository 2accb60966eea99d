"""The predictor's batcher at work, with an engine of paper behind it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from workers.predictor.batcher import Batcher
from workers.predictor.errors import BadQuestion, Corrupt, EngineLost, PredictorError
from workers.predictor.questions import Answer, Asked, Question, Weights
from workers.predictor.room import Room
from workers.predictor.shelf import Shelf

A, B, C = (Weights("root", name) for name in "abc")
PATIENCE = 10.0


@dataclass(frozen=True)
class Paper:
    """Loaded weights that only know their name."""

    weights: Weights
    n_bytes: int = 1


@dataclass
class PaperEngine:
    """Answers "<overlay> <prompt>"; keeps a record of its batches; waits while `busy` or `slow` is shut."""

    batches: list[tuple[Weights, list[str], int]] = field(default_factory=list)
    loads: list[Weights] = field(default_factory=list)
    busy: threading.Event = field(default_factory=threading.Event)
    slow: dict[Weights, threading.Event] = field(default_factory=dict)
    corrupt: set[Weights] = field(default_factory=set)
    turns: int = 1
    """How many turns an answer takes."""
    under_way: dict[Weights, dict[Asked, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.busy.set()

    def load(self, weights: Weights) -> Paper:
        self.loads.append(weights)
        if weights in self.slow:
            assert self.slow[weights].wait(PATIENCE)
        if weights in self.corrupt:
            raise Corrupt(str(weights.overlay_digest), "flipped")
        return Paper(weights)

    def turn(
        self, loaded: Paper, joining: Sequence[Asked], leaving: Sequence[Asked]
    ) -> list[tuple[Asked, Answer | PredictorError]]:
        prompts = [asked.question.prompt for asked in joining]
        limits = {asked.max_tokens for asked in joining}
        self.batches.append((loaded.weights, prompts, max(limits, default=0)))
        assert self.busy.wait(PATIENCE)
        if "explode" in prompts:
            self.under_way.pop(loaded.weights, None)
            raise RuntimeError("boom")
        if "lose the engine" in prompts:
            raise EngineLost("the device is gone")
        under_way = self.under_way.setdefault(loaded.weights, {})
        for asked in leaving:
            del under_way[asked]
        under_way |= dict.fromkeys(joining, self.turns)
        for asked in under_way:
            under_way[asked] -= 1
        done = [asked for asked, left in under_way.items() if left == 0]
        for asked in done:
            del under_way[asked]
        return [(asked, self._answer(loaded, asked)) for asked in done]

    def _answer(self, loaded: Paper, asked: Asked) -> Answer | PredictorError:
        prompt = asked.question.prompt
        if prompt == "bad":
            return BadQuestion("No.")
        text = f"{loaded.weights.overlay_digest} {prompt}"
        return Answer(text=text, n_tokens=asked.max_tokens, stopped=True)


@dataclass
class Desk:
    """A batcher at work, and the engine behind it."""

    batcher: Batcher[Paper]
    engine: PaperEngine

    def ask(self, weights: Weights, *prompts: str, max_tokens: int = 8) -> "asyncio.Task[list[str]]":
        async def texts() -> list[str]:
            answers = await self.batcher.answer(weights, [Question(prompt) for prompt in prompts], max_tokens)
            return [answer.text for answer in answers]

        return asyncio.create_task(texts())

    async def ask_while_busy(self) -> "asyncio.Task[list[str]]":
        """Keep the compute thread busy with one question of C until `engine.busy` is set."""
        self.engine.busy.clear()
        first = self.ask(C, "first")
        await until(lambda: ["first"] in prompts_of(self.engine.batches))
        return first


def at_desk(
    scenario: Callable[[Desk], Awaitable[None]],
    *,
    max_batch: int = 4,
    max_waiting: int = 100,
    ranked: int = 100,
    shelf: int = 8,
    turns: int = 1,
) -> None:
    async def run() -> None:
        engine = PaperEngine(turns=turns)
        batcher = Batcher(
            engine,
            Shelf(max_items=shelf, max_bytes=1000),
            max_batch=max_batch,
            room=Room(prompts=max_waiting, ranked=ranked),
        )
        serving = asyncio.create_task(batcher.serve())
        try:
            async with asyncio.timeout(PATIENCE):
                await scenario(Desk(batcher, engine))
        finally:
            engine.busy.set()
            for event in engine.slow.values():
                event.set()
            serving.cancel()
            await asyncio.wait([serving])

    asyncio.run(run())


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.001)


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def prompts_of(batches: list[tuple[Weights, list[str], int]]) -> list[list[str]]:
    return [prompts for _, prompts, _ in batches]
