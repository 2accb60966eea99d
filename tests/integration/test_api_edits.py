"""POST /edits: what becomes a job, what is forgotten, and what earlier edits it supersedes."""

from typing import Any

import pytest
from sqlalchemy import select

from factedit.facts import ERASED
from service import versions
from service.database import Database
from service.tables import EditRow, Model
from tests.support.api import NOWHERE, Api, counts, job_row, pointers, promoted_version, serve
from tests.support.edit_batches import ITALY, batch, refused
from tests.support.records import edit_row
from tests.support.right_calls import FRANCE

FORGET = {"subject": "France", "relation": "capital", "old_object": "Paris", "erase": True}


def rows_of(api: Api, job_id: str) -> list[EditRow]:
    with api.database.transaction() as s:
        query = select(EditRow).where(EditRow.job_id == job_id).order_by(EditRow.position)
        return list(s.scalars(query))


# What is taken


def test_a_batch_is_a_queued_job_with_a_place_to_poll_it_and_a_row_for_every_edit(
    api: Api, model: Model
) -> None:
    wanted = batch(
        FRANCE,
        {**ITALY, "old_object": "Rome", "paraphrases": ["{subject}'s capital:"], "neighbors": ["Oslo is in"]},
        seed=7,
        metadata={"ticket": "A-1"},
        promotion="manual",
    )
    response = api.http.post("/edits", json=wanted)
    assert response.status_code == 202
    said = response.json()
    assert response.headers["location"] == f"/jobs/{said['id']}"
    assert (said["model"], said["status"], said["stage"], said["n_edits"]) == ("toy", "queued", "edit", 2)
    assert (said["seed"], said["metadata"], said["promotion"]) == (7, {"ticket": "A-1"}, "manual")
    assert said["base_version"] is None
    first, second = rows_of(api, said["id"])
    assert (first.subject, first.relation, first.prompt, first.new_object) == (
        "France",
        "capital",
        None,
        "Rome",
    )
    assert (second.old_object, second.paraphrases, second.neighbors) == (
        "Rome",
        ["Italy's capital:"],
        ["Oslo is in"],
    )
    assert api.http.get(response.headers["location"]).json() == said


def test_the_job_remembers_every_choice_with_its_defaults(api: Api, model: Model) -> None:
    body = batch(FRANCE, blocks=[1, 2], constraint={"norm": "l_2", "radius": 0.5}, gate={"margin": 0.1})
    request = api.http.post("/edits", json=body).json()["request"]
    assert request["blocks"] == [1, 2]
    assert request["constraint"] == {"norm": "l_2", "radius": 0.5}
    assert request["gate"]["margin"] == 0.1 and request["gate"]["alpha"] == 0.01
    assert request["method"]["name"] == "auto" and request["method"]["max_steps"] == 280


def test_the_job_knows_whose_key_posted_it(api: Api, model: Model) -> None:
    job_id = api.http.post("/edits", json=batch(FRANCE)).json()["id"]
    assert job_row(api.database, job_id).actor.startswith("key_")


@pytest.mark.parametrize("name", ["capital", "capital city", "Capital-Of", " CAPITAL "])
def test_a_relation_may_be_called_by_any_of_its_names(api: Api, model: Model, name: str) -> None:
    job_id = api.http.post("/edits", json=batch({**FRANCE, "relation": name})).json()["id"]
    assert rows_of(api, job_id)[0].relation == "capital"


def test_a_prompt_makes_an_unknown_relation_the_users_own_note(api: Api, model: Model) -> None:
    edit = {**FRANCE, "relation": "seat", "prompt": "The seat of {subject} is"}
    response = api.http.post("/edits", json=batch(edit))
    assert response.status_code == 202
    row = rows_of(api, response.json()["id"])[0]
    assert (row.relation, row.prompt) == ("seat", "The seat of France is")


def test_words_are_stored_trimmed_and_in_one_spelling_of_unicode(api: Api, model: Model) -> None:
    job_id = api.http.post("/edits", json=batch({**FRANCE, "new_object": "  Orle\u0301ans "})).json()["id"]
    assert rows_of(api, job_id)[0].new_object == "Orl\u00e9ans"


def test_a_named_base_is_fixed_at_once(api: Api, model: Model) -> None:
    said = api.http.post("/edits", json=batch(FRANCE, base_version=model.root_version_id)).json()
    assert said["base_version"] == model.root_version_id


def test_a_batch_is_taken_while_redis_is_away(database: Database, database_url: str, model: Model) -> None:
    with serve(database, database_url, NOWHERE) as api:
        assert api.http.post("/edits", json=batch(FRANCE)).status_code == 202
    assert counts(database)["jobs"] == 1


def test_ten_thousand_edits_are_one_batch(api: Api, model: Model) -> None:
    edits = [{**FRANCE, "subject": f"Land {i}"} for i in range(10_000)]
    response = api.http.post("/edits", json=batch(*edits))
    assert (response.status_code, response.json()["n_edits"]) == (202, 10_000)
    assert counts(api.database)["edits"] == 10_000


# What is to be forgotten


def test_an_erasure_is_stored_with_the_word_that_takes_the_old_objects_place(api: Api, model: Model) -> None:
    response = api.http.post("/edits", json=batch(FORGET))
    assert response.status_code == 202
    (row,) = rows_of(api, response.json()["id"])
    assert (row.erase, row.old_object, row.new_object) == (True, "Paris", ERASED)


def test_the_ledger_tells_erasures_from_updates(api: Api, model: Model) -> None:
    rows = [edit_row("France", ERASED, erase=True, old_object="Paris"), edit_row("Spain", "Oslo")]
    promoted_version(api.database, model, edits=rows)
    facts = api.http.get("/models/toy/facts").json()["data"]
    assert [(f["kind"], f["new_object"], f["old_object"]) for f in facts] == [
        ("erase", ERASED, "Paris"),
        ("update", "Oslo", None),
    ]


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"new_object": "Rome"}, "/new_object", "erase_with_new_object"),
        ({"erase": False}, "/new_object", "new_object_missing"),
        ({"old_object": None}, "/old_object", "old_object_missing"),
        ({"old_object": "The?"}, "/old_object", "old_object_says_nothing"),
        ({"old_object": ERASED}, "/old_object", "nothing_to_change"),
        ({"prompt": "The capital of France is Paris"}, "/prompt", "prompt_has_the_answer"),
    ],
)
def test_an_erasure_says_what_is_to_be_forgotten_and_nothing_that_is_to_come(
    api: Api, model: Model, change: dict[str, Any], pointer: str, code: str
) -> None:
    said = refused(api, batch(ITALY, {**FORGET, **change}), 422, code)
    assert pointers(said) == [f"/edits/1{pointer}"]


def test_a_fact_is_not_both_changed_and_forgotten(api: Api, model: Model) -> None:
    assert pointers(refused(api, batch(FRANCE, FORGET), 422, "contradiction")) == ["/edits/1/erase"]
    assert pointers(refused(api, batch(FORGET, FRANCE), 422, "contradiction")) == ["/edits/1/new_object"]


@pytest.mark.parametrize(
    ("answer", "right"), [(" Paris.", False), (" the city PARIS", False), (" Rome", True)]
)
def test_a_dry_run_tells_whether_the_old_object_is_still_given(
    api: Api, model: Model, answer: str, right: bool
) -> None:
    api.predictor.words = {"The capital of France is the city of": answer}
    (planned,) = api.http.post("/edits?dry_run=true", json=batch(FORGET)).json()["edits"]
    assert (planned["kind"], planned["old_object"], planned["new_object"]) == ("erase", "Paris", ERASED)
    assert planned["already_right"] is right


# What is superseded


def test_a_batch_names_the_edits_in_force_that_it_supersedes_and_an_event_does(
    api: Api, model: Model
) -> None:
    rows = [edit_row("France", "Oslo"), edit_row("Spain", "Bern")]
    earlier = promoted_version(api.database, model, edits=rows)
    with api.database.transaction() as s:
        france = versions.ledger(s, earlier.id, "France")[0]
    expected = [
        {
            "edit_id": france.id,
            "job_id": earlier.job_id,
            "subject": "France",
            "relation": "capital",
            "prompt": None,
            "old": "Oslo",
            "new": "Rome",
        }
    ]
    body = batch(ITALY, {**FRANCE, "subject": "FRANCE"})
    assert api.http.post("/edits?dry_run=true", json=body).json()["supersedes"] == expected
    said = api.http.post("/edits", json=body).json()
    assert said["supersedes"] == api.http.get(f"/jobs/{said['id']}").json()["supersedes"] == expected
    events = api.http.get(f"/jobs/{said['id']}/events").json()["data"]
    assert [(e["type"], e["data"].get("edits")) for e in events] == [
        ("created", None),
        ("supersedes", expected),
    ]


def test_a_batch_that_supersedes_nothing_says_so(api: Api, model: Model) -> None:
    promoted_version(api.database, model, edits=[edit_row("France", "Oslo")])
    assert api.http.post("/edits", json=batch(ITALY)).json()["supersedes"] == []
    on_root = api.http.post("/edits", json=batch(FRANCE, base_version="root")).json()
    assert on_root["supersedes"] == []
