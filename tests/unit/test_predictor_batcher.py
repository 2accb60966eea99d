"""Who is answered together, when, and in what order, by an engine of paper."""

import asyncio
import itertools
import random

import pytest

from tests.support.desk import A, B, C, Desk, at_desk, prompts_of, settle, until
from workers.predictor.errors import PredictorError
from workers.predictor.questions import Weights


def test_what_waits_at_the_same_time_for_one_version_is_answered_as_one_batch() -> None:
    async def scenario(desk: Desk) -> None:
        first = await desk.ask_while_busy()
        others = [desk.ask(A, f"{i}") for i in range(3)]
        await until(lambda: A in desk.engine.loads)
        desk.engine.busy.set()
        assert await first == ["c first"]
        assert await asyncio.gather(*others) == [["a 0"], ["a 1"], ["a 2"]]
        assert prompts_of(desk.engine.batches) == [["first"], ["0", "1", "2"]]

    at_desk(scenario)


def test_requests_with_another_token_limit_share_a_batch() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.ask_while_busy()
        others = [desk.ask(C, "short", max_tokens=2), desk.ask(C, "long", max_tokens=50)]
        await settle()
        desk.engine.busy.set()
        await asyncio.gather(*others)
        assert desk.engine.batches[1:] == [(C, ["short", "long"], 50)]

    at_desk(scenario)


def test_whoever_comes_while_others_are_under_way_joins_them_and_is_not_kept_until_they_end() -> None:
    async def scenario(desk: Desk) -> None:
        early = desk.ask(A, "early")
        await until(lambda: ["early"] in prompts_of(desk.engine.batches))
        late = desk.ask(A, "late")
        assert await early == ["a early"]
        assert not late.done()
        assert await late == ["a late"]
        assert len(desk.engine.batches) < 600  # not 300 turns and 300 more

    at_desk(scenario, turns=300)


def test_versions_under_way_take_turns() -> None:
    async def scenario(desk: Desk) -> None:
        for weights in (A, B, C):
            await desk.ask(weights, "so that it is at hand")
        desk.engine.batches.clear()
        await asyncio.gather(*(desk.ask(weights, "long") for weights in (A, B, C)))
        assert [weights for weights, _, _ in desk.engine.batches] == [A, B, C] * 5

    at_desk(scenario, turns=5)


def test_equal_questions_are_computed_once_and_go_on_for_those_who_stay() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.ask_while_busy()
        asks = [desk.ask(C, "same") for _ in range(3)] + [desk.ask(C, "same", "same")]
        other_limit = desk.ask(C, "same", max_tokens=9)
        await settle()
        asks[0].cancel()
        await settle()
        desk.engine.busy.set()
        assert await asyncio.gather(*asks[1:], other_limit) == [["c same"]] * 2 + [["c same"] * 2, ["c same"]]
        assert prompts_of(desk.engine.batches)[1:] == [["same", "same"]]

    at_desk(scenario)


def test_what_nobody_waits_for_any_more_leaves_amid_its_answer_and_may_be_asked_again() -> None:
    async def scenario(desk: Desk) -> None:
        leaving, staying = desk.ask(A, "leaving"), desk.ask(A, "staying")
        await until(lambda: ["leaving", "staying"] in prompts_of(desk.engine.batches))
        leaving.cancel()
        await until(lambda: len(desk.engine.under_way.get(A, ())) == 1)
        assert await desk.ask(A, "leaving") == ["a leaving"]
        assert await staying == ["a staying"]
        assert not desk.engine.under_way[A]

    at_desk(scenario, turns=300)


@pytest.mark.parametrize("seed", range(5))
def test_whoever_comes_and_goes_and_fails_everyone_gets_an_answer_or_an_error_of_their_own(seed: int) -> None:
    chance = random.Random(seed)

    async def scenario(desk: Desk) -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(chance.random() / 20)
            prompt = chance.choice((f"{number}", "same", "bad", "explode"))
            asked = desk.ask(weights := chance.choice((A, B, C)), prompt)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() / 50)
                asked.cancel()
            try:
                assert await asked == [f"{weights.overlay_digest} {prompt}"]
            except PredictorError:
                assert prompt in ("bad", "explode")
            except asyncio.CancelledError:
                pass

        await asyncio.gather(*(one(number) for number in range(150)))

    at_desk(scenario, max_batch=6, max_waiting=1000, shelf=2, turns=3)


def test_a_batch_holds_no_more_prompts_than_it_may_and_answers_keep_their_order() -> None:
    async def scenario(desk: Desk) -> None:
        texts = await desk.ask(A, *map(str, range(10)))
        assert texts == [f"a {i}" for i in range(10)]
        assert [len(prompts) for prompts in prompts_of(desk.engine.batches)] == [4, 4, 2]

    at_desk(scenario, max_batch=4)


def test_every_answer_comes_from_the_weights_that_were_asked_for() -> None:
    chance = random.Random(1)
    versions = [Weights(root, overlay) for root in ("r", "s") for overlay in ("a", "b", "c", None)]

    async def scenario(desk: Desk) -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(chance.random() / 20)
            weights = chance.choice(versions)
            texts = await desk.ask(weights, f"{number}", f"{number}'", max_tokens=chance.choice((1, 2)))
            assert texts == [f"{weights.overlay_digest} {number}", f"{weights.overlay_digest} {number}'"]

        await asyncio.gather(*(one(number) for number in range(300)))
        for weights, prompts, _ in desk.engine.batches:
            assert len(prompts) <= 6, weights

    # A shelf of three for eight versions: they push each other out all the time.
    at_desk(scenario, max_batch=6, max_waiting=1000, shelf=3)


def test_a_flood_for_one_version_does_not_starve_another() -> None:
    async def scenario(desk: Desk) -> None:
        flooding, numbers = True, itertools.count()

        async def flood() -> None:
            while flooding:
                await desk.ask(A, f"flood {next(numbers)}")

        await desk.ask(B, "so that both are at hand")
        await desk.ask(A, "so that both are at hand")
        await desk.ask_while_busy()
        floods = [asyncio.create_task(flood()) for _ in range(20)]
        await settle()
        lone = desk.ask(B, "lone")
        await settle()
        before = len(desk.engine.batches)
        desk.engine.busy.set()
        await lone
        answered_before_it = prompts_of(desk.engine.batches)[before:].index(["lone"])
        flooding = False
        await asyncio.gather(*floods)
        assert answered_before_it <= 1

    at_desk(scenario, max_batch=4)
