"""Who has room in the predictor's queue, and who is refused or fails alone."""

import asyncio

import pytest

from tests.support.desk import A, C, Desk, at_desk, prompts_of, settle, until
from workers.predictor.errors import BadQuestion, Overloaded, PredictorError
from workers.predictor.questions import Question


def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.ask_while_busy()
        waiting = desk.ask(A, "1", "2", "3", "4")
        await settle()
        with pytest.raises(Overloaded) as refused:
            await desk.ask(A, "5")
        assert refused.value.retry_after >= 1
        desk.engine.busy.set()
        await waiting
        assert await desk.ask(A, "5") == ["a 5"]

    at_desk(scenario, max_waiting=5)


def test_a_request_that_could_never_fit_is_told_so_rather_than_to_come_back_later() -> None:
    async def scenario(desk: Desk) -> None:
        with pytest.raises(BadQuestion, match="at most 5"):
            await desk.ask(A, *map(str, range(6)))

    at_desk(scenario, max_waiting=5)


def test_the_queue_counts_what_ranking_reads_and_not_only_prompts() -> None:
    def ranking(prompts: int, names: int) -> list[Question]:
        return [Question(f"{i}", candidates=tuple(map(str, range(names)))) for i in range(prompts)]

    async def scenario(desk: Desk) -> None:
        with pytest.raises(BadQuestion, match="at most 100"):
            await desk.batcher.answer(A, ranking(2, 51), 0)
        await desk.ask_while_busy()
        waiting = asyncio.create_task(desk.batcher.answer(C, ranking(2, 40), 0))
        await settle()
        with pytest.raises(Overloaded):
            await desk.batcher.answer(A, ranking(1, 21), 0)
        beside = asyncio.create_task(desk.batcher.answer(A, ranking(1, 20), 0))
        await settle()
        desk.engine.busy.set()
        await asyncio.gather(waiting, beside)
        assert await desk.batcher.answer(A, ranking(2, 50), 0)

    at_desk(scenario, ranked=100)


def test_rankings_keep_nobody_out_of_a_batch() -> None:
    async def scenario(desk: Desk) -> None:
        ranking = [Question(f"rank {i}", candidates=("x", "y")) for i in range(10)]
        long = asyncio.create_task(desk.batcher.answer(A, ranking, 0))
        await until(lambda: len(desk.engine.under_way.get(A, ())) == 10)
        plain = desk.ask(A, *map(str, range(4)))
        await until(lambda: ["0", "1", "2", "3"] in prompts_of(desk.engine.batches))
        assert not long.done()
        await asyncio.gather(long, plain)

    at_desk(scenario, max_batch=4, turns=300)


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    async def scenario(desk: Desk) -> None:
        first = await desk.ask_while_busy()
        leaving, staying = desk.ask(C, "leaving"), desk.ask(C, "staying")
        await settle()
        leaving.cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await desk.batcher.answer(C, [Question("too late")], 8)
        desk.engine.busy.set()
        await asyncio.gather(first, staying)
        assert prompts_of(desk.engine.batches) == [["first"], ["staying"]]

    at_desk(scenario)


def test_room_in_the_queue_is_given_back_by_whoever_leaves() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.ask_while_busy()
        leaving = desk.ask(A, "1", "2", "3", "4")
        await settle()
        leaving.cancel()
        await settle()
        staying = desk.ask(A, "5", "6", "7", "8")
        await settle()
        desk.engine.busy.set()
        assert await staying == ["a 5", "a 6", "a 7", "a 8"]

    at_desk(scenario, max_waiting=5)


@pytest.mark.parametrize(("culprit", "error"), [("bad", BadQuestion), ("explode", PredictorError)])
def test_one_bad_request_does_not_fail_those_that_share_its_batch(
    culprit: str, error: type[PredictorError]
) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.ask_while_busy()
        good, bad, also_good = desk.ask(C, "good"), desk.ask(C, "fine", culprit), desk.ask(C, "also good")
        await settle()
        desk.engine.busy.set()
        assert await good == ["c good"]
        assert await also_good == ["c also good"]
        with pytest.raises(error) as failed:
            await bad
        assert "boom" not in failed.value.message
        assert await desk.ask(C, "later") == ["c later"]
        assert prompts_of(desk.engine.batches)[1] == ["good", "fine", culprit, "also good"]

    at_desk(scenario)
