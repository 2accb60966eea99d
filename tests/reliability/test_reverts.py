"""A batch is taken out of a line again: its facts are the root's once more, all other batches hold."""

from collections.abc import Sequence

import pytest

from factedit.facts import ERASED
from tests.support.toy_stack import MODEL, QUICK_METHOD, Json, ToyStack, capital, quick
from workers.demo.client import Problem


def on_production(toy: ToyStack, batch: Json, **fields: object) -> str:
    """The id of a job that built on production, and has ended well."""
    job = toy.ended(toy.post(batch, base_version=None, **fields))
    assert job["status"] == "succeeded", job["error"]
    return str(job["id"])


def cities(toy: ToyStack, countries: Sequence[str], reference: str = MODEL) -> list[str]:
    return [toy.answer(reference, country) for country in countries]


def reverted(toy: ToyStack, job_id: str, **body: object) -> Json:
    """The job that reverts another, once it has ended."""
    return toy.ended(toy.api.post(f"/jobs/{job_id}/revert", dict(body))["id"])


def facts(toy: ToyStack) -> list[tuple[str, str]]:
    return [(fact["subject"], fact["job"]) for fact in toy.api.get(f"/models/{MODEL}/facts")["data"]]


def test_a_reverted_batch_answers_as_the_root_again_and_the_other_batch_still_holds(toy: ToyStack) -> None:
    countries = ["France", "Spain"]
    first = on_production(toy, quick("France", "Rome"))
    second = on_production(toy, quick("Spain", "Berlin"))
    assert cities(toy, countries) == ["Rome", "Berlin"]
    job = reverted(toy, first, reason="The source was wrong.")
    assert (job["status"], job["promoted"], job["error"]) == ("succeeded", True, None)
    assert cities(toy, countries) == ["Paris", "Berlin"]
    assert facts(toy) == [("Spain", second)]
    report = toy.api.get(f"/jobs/{job['id']}/report")
    (gone,) = report["reverted"]
    assert (gone["before"].strip(), gone["after"].strip(), gone["gone"]) == ("Rome", "Paris", True)
    (still,) = report["edits"]
    assert (still["subject"], still["right_after"]) == ("Spain", True)
    assert report["integrity"]["root_unchanged"] is True
    with pytest.raises(Problem) as refusal:
        toy.api.post(f"/jobs/{first}/revert", {})
    assert (refusal.value.status, refusal.value.code) == (409, "already_reverted")


def test_the_rebuilt_line_is_the_one_that_never_had_the_batch_to_the_last_bit(toy: ToyStack) -> None:
    never = toy.version(toy.job(on_production(toy, quick("Spain", "Berlin")))["candidate_version"])
    toy.start_at_root()
    first = on_production(toy, quick("France", "Rome"))
    on_production(toy, quick("Spain", "Berlin"))
    job = reverted(toy, first)
    assert toy.version(job["candidate_version"])["overlay_digest"] == never["overlay_digest"]


def test_what_the_reverted_batch_had_superseded_holds_again(toy: ToyStack) -> None:
    first = on_production(toy, quick("France", "Rome"))
    second = on_production(toy, quick("France", "Madrid"))
    (superseded,) = toy.job(second)["supersedes"]
    assert (superseded["job_id"], superseded["old"], superseded["new"]) == (first, "Rome", "Madrid")
    assert reverted(toy, second)["status"] == "succeeded"
    assert cities(toy, ["France"]) == ["Rome"]
    assert facts(toy) == [("France", first)]


def test_when_the_last_batch_is_reverted_production_answers_as_the_root(toy: ToyStack) -> None:
    countries = ["France", "Germany", "Italy", "Spain"]
    job = reverted(toy, on_production(toy, quick("France", "Rome")))
    assert (job["status"], job["promoted"]) == ("succeeded", True)
    assert facts(toy) == []
    prompts = [capital(country) for country in countries]
    production, root = toy.api.compare(MODEL, f"{MODEL}@root", prompts)
    assert production == root
    moved = toy.api.post(f"/models/{MODEL}/rollback", {"reason": "A test."})
    assert moved["from_version"] == job["candidate_version"]
    assert cities(toy, ["France"]) == ["Rome"]


def test_a_batch_that_was_never_promoted_is_not_reverted(toy: ToyStack) -> None:
    job_id = on_production(toy, quick("Italy", "Berlin"), promotion="manual")
    with pytest.raises(Problem) as refusal:
        toy.api.post(f"/jobs/{job_id}/revert", {})
    assert (refusal.value.status, refusal.value.code) == (409, "never_promoted")


def test_an_erased_fact_is_not_given_any_more(toy: ToyStack) -> None:
    edit = {"subject": "France", "relation": "capital", "old_object": "Paris", "erase": True}
    job_id = on_production(toy, {"edits": [edit], **QUICK_METHOD})
    (told,) = toy.api.get(f"/jobs/{job_id}/report")["edits"]
    assert (told["kind"], told["old_object"], told["target"]) == ("erase", "Paris", ERASED)
    assert told["before"].strip() == "Paris" and not told["right_before"]
    assert told["old_ranked_first"] is not None
    assert toy.answer(MODEL, "France") != "Paris"
    assert reverted(toy, job_id)["status"] == "succeeded"
    assert toy.answer(MODEL, "France") == "Paris"
