"""The predictor's batcher with an engine of paper: who is answered, when, with whose weights."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from workers.predictor.batcher import Batcher
from workers.predictor.errors import BadQuestion, Corrupt, EngineLost, Overloaded, PredictorError
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


def test_when_the_engine_is_lost_everyone_is_told_and_serving_ends() -> None:
    async def run() -> None:
        engine = PaperEngine()
        batcher = Batcher(
            engine, Shelf(max_items=8, max_bytes=8), max_batch=1, room=Room(prompts=100, ranked=100)
        )
        serving = asyncio.create_task(batcher.serve())
        desk = Desk(batcher, engine)
        await desk.ask_while_busy()
        asks = [desk.ask(C, "lose the engine"), desk.ask(C, "waiting"), desk.ask(C, "waiting too")]
        await settle()
        engine.busy.set()
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(result) for result in results] == [Overloaded] * 3
        with pytest.raises(Overloaded):
            await desk.ask(A, "too late")
        with pytest.raises(EngineLost):
            await serving

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_stopping_tells_those_who_wait_rather_than_leaving_them_hanging() -> None:
    async def run() -> None:
        engine = PaperEngine()
        batcher = Batcher(
            engine, Shelf(max_items=8, max_bytes=8), max_batch=4, room=Room(prompts=100, ranked=100)
        )
        serving = asyncio.create_task(batcher.serve())
        desk = Desk(batcher, engine)
        computing = await desk.ask_while_busy()
        waiting = desk.ask(A, "waiting")
        await settle()
        serving.cancel()
        started = time.monotonic()
        results = await asyncio.gather(computing, waiting, return_exceptions=True)
        engine.busy.set()
        assert [type(result) for result in results] == [Overloaded] * 2
        assert time.monotonic() - started < PATIENCE / 2

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
