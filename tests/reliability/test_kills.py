"""Whatever is killed, a job ends once, and what was promised of versions holds."""

import time
from pathlib import Path

import httpx2
import pytest

from service import jobs
from tests.support.ends import assert_ended_as_undisturbed
from tests.support.toy_stack import MODEL, ROOT, Json, ToyStack, capital, eventually, quick
from workers.demo.client import Problem

COUNTRIES = ["France", "Germany", "Italy", "Spain", "Austria"]


@pytest.mark.parametrize("part", ["worker", "child", "api", "redis"])
def test_a_job_ends_as_if_nothing_had_happened_when_a_process_is_killed_amid_it(
    toy: ToyStack, undisturbed: Json, part: str
) -> None:
    job_id = toy.post_slow()
    killed = toy.kill(part)
    assert "published" not in toy.types(job_id), "the kill came too late to show anything"
    assert_ended_as_undisturbed(toy, job_id, undisturbed)
    began_again = part in ("worker", "child")
    assert toy.types(job_id).count("requeued") == began_again
    assert toy.types(job_id).count("claimed") == (3 if began_again else 2)
    eventually(lambda: (now := toy.process(part)) is not None and now.pid != killed, 30)
    eventually(toy.whole, 30)
    assert toy.answer(MODEL, "Germany") == "Berlin"


def test_a_killed_predictor_disturbs_no_job_and_answers_again(toy: ToyStack, undisturbed: Json) -> None:
    job_id = toy.post_slow()
    with toy.without("predictor"):
        with pytest.raises(Problem) as refusal:
            toy.answer(MODEL, "Germany")
        assert (refusal.value.status, refusal.value.code) == (503, "predictor_away")
    eventually(lambda: answers(toy, "Germany", "Berlin"), 30)
    assert_ended_as_undisturbed(toy, job_id, undisturbed)
    assert "requeued" not in toy.types(job_id)


def answers(toy: ToyStack, country: str, city: str) -> bool:
    try:
        return toy.answer(MODEL, country) == city
    except Problem as problem:
        assert problem.code == "predictor_away"
        return False


def test_a_stream_of_events_is_taken_up_where_the_killed_api_left_it(toy: ToyStack) -> None:
    job_id = toy.post_slow()
    seen: list[int] = []
    killed = None
    for event in toy.api.events(job_id):
        if event["type"] == "progress" and killed is None:
            killed = toy.kill("api")
        seen.append(event["id"])
    assert killed is not None
    assert seen == [event.seq for event in toy.events(job_id)]


def test_a_batch_posted_while_redis_is_dead_is_accepted_and_runs_once_redis_is_back(toy: ToyStack) -> None:
    with toy.without("redis"):
        began = time.monotonic()
        url = f"http://{toy.settings.api_host}:{toy.settings.api_port}/edits"
        headers = {"Authorization": f"Bearer {toy.key}"}
        response = httpx2.post(url, json=toy.body(quick("Spain", "Rome")), headers=headers, timeout=30)
        assert response.status_code == 202
        assert time.monotonic() - began < 5
        job_id = response.json()["id"]
        time.sleep(4 * toy.settings.sweep_seconds)
        assert toy.job(job_id)["status"] == "queued"
    assert toy.ended(job_id)["status"] == "succeeded"
    assert toy.types(job_id).count("succeeded") == 1
    assert toy.answer(MODEL, "Spain") == "Rome"


def test_a_cancel_amid_the_editing_ends_the_job_and_publishes_no_version(toy: ToyStack) -> None:
    before = toy.production()
    job_id = toy.post_slow()
    toy.api.post(f"/jobs/{job_id}/cancel", {})
    assert toy.ended(job_id, 15)["status"] == "cancelled"
    assert [type_ for type_ in toy.types(job_id) if type_ in jobs.FINAL] == ["cancelled"]
    assert toy.versions_of(job_id) == []
    assert toy.production() == before


def test_rollback_and_answers_need_neither_worker_nor_redis(toy: ToyStack, edited: Json) -> None:
    toy.roll_back(edited["id"])
    with toy.without("worker", "redis"):
        assert toy.answer(MODEL, "France") == "Rome"
        began = time.monotonic()
        moved = toy.roll_back("root")
        assert time.monotonic() - began < 1
        assert moved["from_version"] == edited["id"]
        assert toy.answer(MODEL, "France") == "Paris"
        assert toy.answer(f"{MODEL}@{edited['id']}", "France") == "Rome"


def test_the_same_batch_base_and_seed_make_the_same_weights_in_another_process(
    toy: ToyStack, edited: Json
) -> None:
    toy.kill("worker")
    again = toy.made(quick("France", "Rome"))
    assert again["id"] != edited["id"]
    assert again["overlay_digest"] == edited["overlay_digest"]


def test_another_batch_makes_other_weights(toy: ToyStack, edited: Json) -> None:
    other = toy.made(quick("France", "Madrid"), promotion="manual")
    assert other["overlay_digest"] != edited["overlay_digest"]


def test_a_version_with_a_flipped_bit_is_quarantined_and_nothing_answers_in_its_place(
    toy: ToyStack, edited: Json
) -> None:
    toy.roll_back(edited["id"])
    damaged = toy.made(quick("Italy", "Berlin"), promotion="manual")
    flip_a_bit(toy.settings.store_dir / "overlays" / damaged["overlay_digest"])
    for _ in range(2):
        with pytest.raises(Problem) as refusal:
            toy.answer(f"{MODEL}@{damaged['id']}", "Italy")
        assert (refusal.value.status, refusal.value.code) == (503, "version_quarantined")
        assert toy.version(damaged["id"])["state"] == "quarantined"
    assert toy.answer(MODEL, "France") == "Rome"
    assert toy.version(edited["id"])["state"] == "production"


def flip_a_bit(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)


def test_after_a_rollback_to_the_root_production_answers_as_the_root(toy: ToyStack, edited: Json) -> None:
    prompts = [capital(country) for country in COUNTRIES]
    toy.roll_back(edited["id"])
    production, root = toy.api.compare(MODEL, ROOT, prompts)
    assert production != root
    toy.roll_back("root")
    production, again = toy.api.compare(MODEL, ROOT, prompts)
    assert production == root == again
