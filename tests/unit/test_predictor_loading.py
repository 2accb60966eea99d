"""With whose weights the predictor answers, how often they are read, and how serving ends."""

import asyncio
import threading
import time

import pytest

from tests.support.desk import PATIENCE, A, B, C, Desk, PaperEngine, at_desk, settle, until
from workers.predictor.batcher import Batcher
from workers.predictor.errors import Corrupt, EngineLost, Overloaded
from workers.predictor.room import Room
from workers.predictor.shelf import Shelf


def test_weights_are_read_once_however_many_ask_for_them() -> None:
    async def scenario(desk: Desk) -> None:
        desk.engine.slow[A] = threading.Event()
        asks = [desk.ask(A, f"{i}") for i in range(10)]
        await until(lambda: bool(desk.engine.loads))
        desk.engine.slow[A].set()
        await asyncio.gather(*asks)
        await desk.ask(A, "again")
        assert desk.engine.loads == [A]

    at_desk(scenario)


def test_reading_one_versions_weights_does_not_hold_up_another_version() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.ask(B, "so that B is at hand")
        desk.engine.slow[A] = threading.Event()
        slow = desk.ask(A, "slow")
        await until(lambda: A in desk.engine.loads)
        assert await desk.ask(B, "quick") == ["b quick"]
        assert not slow.done()
        desk.engine.slow[A].set()
        assert await slow == ["a slow"]

    at_desk(scenario)


def test_corrupt_weights_fail_their_own_questions_only_and_are_never_kept() -> None:
    async def scenario(desk: Desk) -> None:
        desk.engine.corrupt.add(A)
        corrupt, sound = desk.ask(A, "one"), desk.ask(B, "two")
        with pytest.raises(Corrupt) as refused:
            await corrupt
        assert refused.value.digest == "a"
        assert await sound == ["b two"]
        with pytest.raises(Corrupt):
            await desk.ask(A, "again")
        desk.engine.corrupt.clear()
        assert await desk.ask(A, "repaired") == ["a repaired"]
        assert all(weights != A for weights, _, _ in desk.engine.batches[:-1])

    at_desk(scenario)


def test_warming_reads_the_weights_and_answers_nothing() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.batcher.warm(A)
        assert desk.engine.loads == [A]
        assert desk.engine.batches == [(A, [], 0)]

    at_desk(scenario)


def desk_alone(max_batch: int) -> Desk:
    """One that the test itself serves, and sees end."""
    engine = PaperEngine()
    batcher = Batcher(
        engine, Shelf(max_items=8, max_bytes=8), max_batch=max_batch, room=Room(prompts=100, ranked=100)
    )
    return Desk(batcher, engine)


def test_when_the_engine_is_lost_everyone_is_told_and_serving_ends() -> None:
    async def run() -> None:
        desk = desk_alone(max_batch=1)
        serving = asyncio.create_task(desk.batcher.serve())
        await desk.ask_while_busy()
        asks = [desk.ask(C, "lose the engine"), desk.ask(C, "waiting"), desk.ask(C, "waiting too")]
        await settle()
        desk.engine.busy.set()
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(result) for result in results] == [Overloaded] * 3
        with pytest.raises(Overloaded):
            await desk.ask(A, "too late")
        with pytest.raises(EngineLost):
            await serving

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_stopping_tells_those_who_wait_rather_than_leaving_them_hanging() -> None:
    async def run() -> None:
        desk = desk_alone(max_batch=4)
        serving = asyncio.create_task(desk.batcher.serve())
        computing = await desk.ask_while_busy()
        waiting = desk.ask(A, "waiting")
        await settle()
        serving.cancel()
        started = time.monotonic()
        results = await asyncio.gather(computing, waiting, return_exceptions=True)
        desk.engine.busy.set()
        assert [type(result) for result in results] == [Overloaded] * 2
        assert time.monotonic() - started < PATIENCE / 2

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
