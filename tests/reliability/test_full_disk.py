"""A full disk fails the job that needs room on it, and nothing else: the service answers throughout."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tests.support.small_disk import SmallDisk
from tests.support.tools import times
from tests.support.toy_stack import MODEL, Json, ToyStack, capital, quick

CLIENTS = 4
PAUSE_SECONDS = 0.05
SMALL: Json = {**quick("Italy", "Berlin"), "blocks": [3]}
LARGE: Json = {**quick("Italy", "Berlin"), "blocks": [0, 1, 2, 3]}


@pytest.fixture
def disk(store_disk: SmallDisk | None) -> SmallDisk:
    if store_disk is None:
        pytest.skip("one may not mount a tmpfs here, as root may")
    return store_disk


@contextmanager
def asked_throughout(toy: ToyStack) -> Iterator[Counter[str]]:
    """Clients go on asking production; counts what they were answered."""
    over, heard = threading.Event(), Counter[str]()
    url = f"http://{toy.settings.api_host}:{toy.settings.api_port}/predict"
    question = {"model": MODEL, "prompt": capital("Germany"), "max_tokens": 1}

    def ask() -> None:
        with httpx2.Client(headers={"Authorization": f"Bearer {toy.key}"}, timeout=10) as http:
            while not over.wait(PAUSE_SECONDS):
                response = http.post(url, json=question)
                told = response.json()
                heard[told["answers"][0]["text"].strip() if response.is_success else response.text] += 1

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield heard
    finally:
        over.set()
        for client in clients:
            client.join()


def unfinished(toy: ToyStack) -> list[str]:
    return [entry.name for entry in (toy.settings.store_dir / "tmp").iterdir()]


def assert_failed_for_want_of_room(toy: ToyStack, job_id: str) -> None:
    job = toy.ended(job_id)
    assert (job["status"], job["error"] and job["error"]["code"]) == ("failed", "storage_full")
    assert toy.versions_of(job_id) == []
    assert unfinished(toy) == []


def test_jobs_fail_while_the_disk_is_full_and_the_next_one_passes_when_there_is_room(
    toy: ToyStack, disk: SmallDisk
) -> None:
    before = toy.production()
    with asked_throughout(toy) as heard:
        with disk.with_room_for(0):
            posted = [toy.post(SMALL, seed=seed) for seed in range(times(3, 100))]
            for job_id in posted:
                assert_failed_for_want_of_room(toy, job_id)
            assert toy.production() == before
        job = toy.ended(toy.post(SMALL))
    assert (job["status"], job["promoted"], job["error"]) == ("succeeded", True, None)
    assert toy.answer(MODEL, "Italy") == "Berlin"
    assert set(heard) == {"Berlin"} and heard["Berlin"] > CLIENTS, heard


def test_a_small_job_passes_on_a_disk_that_has_no_room_for_a_large_one(
    toy: ToyStack, disk: SmallDisk
) -> None:
    small, large = (toy.made(batch, promotion="manual")["overlay_bytes"] for batch in (SMALL, LARGE))
    assert 2 * small < large
    with disk.with_room_for((small + large) // 2):
        first, second = (
            toy.post({**batch, **quick("Spain", city)})
            for batch, city in ((LARGE, "Berlin"), (SMALL, "Rome"))
        )
        assert_failed_for_want_of_room(toy, first)
        assert toy.ended(second)["status"] == "succeeded"
    assert toy.answer(MODEL, "Spain") == "Rome"
