"""POST /edits: what becomes a job, what is refused, and that a refusal leaves nothing behind."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from factedit.facts import ERASED
from factedit.relations import builtin_catalogue
from service import batches, planning, versions
from service.database import Database
from service.ids import new_id
from service.tables import EditRow, Model
from tests.support.api import (
    NOWHERE,
    Api,
    counts,
    job_row,
    model_of,
    pointers,
    problem,
    promoted_version,
    refused_version,
    serve,
)
from tests.support.records import edit_row

FRANCE = {"subject": "France", "relation": "capital", "new_object": "Rome"}
FORGET = {"subject": "France", "relation": "capital", "old_object": "Paris", "erase": True}
ITALY = {"subject": "Italy", "relation": "capital", "new_object": "Paris"}


@pytest.fixture
def api(database: Database, database_url: str, redis_url: str) -> Iterator[Api]:
    with serve(database, database_url, redis_url, max_edits=10_000) as running:
        yield running


@pytest.fixture
def model(database: Database) -> Model:
    return model_of(database)


def batch(*edits: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "toy", "edits": list(edits), **fields}


def refused(api: Api, body: dict[str, Any], status: int, code: str | None = None) -> dict[str, Any]:
    """The refusal, once it has shown to have stored nothing."""
    before = counts(api.database)
    said = problem(api.http.post("/edits", json=body), status, code)
    assert counts(api.database) == before
    assert (before["jobs"], before["edits"]) == (0, 0)
    return said


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


# What is refused


def test_an_unknown_model_is_not_found_and_the_nearest_names_are_told(api: Api, model: Model) -> None:
    said = refused(api, {**batch(FRANCE), "model": "toi"}, 404, "model_not_found")
    assert said["nearest"] == ["toy"] and "'toy'" in said["detail"]


def test_an_unknown_relation_without_a_prompt_is_refused_with_the_nearest_named(
    api: Api, model: Model
) -> None:
    said = refused(api, batch(ITALY, {**FRANCE, "relation": "capitol"}), 422, "relation_not_found")
    assert pointers(said) == ["/edits/1/relation"]
    assert "capital" in said["detail"]


def test_a_relation_alone_is_not_needed_but_some_words_are(api: Api, model: Model) -> None:
    said = refused(api, batch({"subject": "France", "new_object": "Rome"}), 422, "prompt_missing")
    assert pointers(said) == ["/edits/0"]


def test_an_empty_batch_is_refused(api: Api, model: Model) -> None:
    assert pointers(refused(api, batch(), 422, "invalid_request")) == ["/edits"]


def test_a_contradiction_names_both_positions(api: Api, model: Model) -> None:
    edits = [ITALY, FRANCE, {**FRANCE, "subject": "FRANCE", "relation": "capital city", "new_object": "Oslo"}]
    said = refused(api, batch(*edits), 422, "contradiction")
    assert pointers(said) == ["/edits/2/new_object"]
    assert "/edits/1" in said["detail"] and "'Rome'" in said["detail"] and "'Oslo'" in said["detail"]


def test_two_objects_for_one_prompt_contradict_each_other_whatever_their_subjects(
    api: Api, model: Model
) -> None:
    first = {"subject": "France", "prompt": "Its capital is", "new_object": "Rome"}
    second = {"subject": "Gaul", "prompt": "Its capital is", "new_object": "Oslo"}
    assert pointers(refused(api, batch(first, second), 422, "contradiction")) == ["/edits/1/new_object"]


def test_the_same_words_contradict_each_other_whichever_way_they_are_given(api: Api, model: Model) -> None:
    words = builtin_catalogue().relations["capital"].training_prompts("France")[0]
    by_prompt = {"subject": "France", "prompt": words, "new_object": "Oslo"}
    river = {"subject": "France", "prompt": "Its river is", "new_object": "Oslo", "paraphrases": [words]}
    for other in (by_prompt, river):
        said = refused(api, batch(FRANCE, other), 422, "contradiction")
        assert pointers(said) == ["/edits/1/new_object"] and "/edits/0" in said["detail"]


def test_the_same_edit_twice_is_refused(api: Api, model: Model) -> None:
    said = refused(api, batch(FRANCE, ITALY, {**FRANCE, "new_object": "rome."}), 422, "duplicate_edit")
    assert pointers(said) == ["/edits/2"] and "/edits/0" in said["detail"]


def test_an_object_that_is_the_old_one_changes_nothing_and_is_refused(api: Api, model: Model) -> None:
    said = refused(api, batch({**FRANCE, "old_object": "the rome"}), 422, "nothing_to_change")
    assert pointers(said) == ["/edits/0/new_object"]


def test_a_prompt_that_ends_with_the_object_is_refused(api: Api, model: Model) -> None:
    edit = {**FRANCE, "prompt": "The capital of France is rome"}
    assert pointers(refused(api, batch(edit), 422, "prompt_has_the_answer")) == ["/edits/0/prompt"]


def test_a_paraphrase_that_ends_with_the_object_is_refused(api: Api, model: Model) -> None:
    edit = {**FRANCE, "paraphrases": ["Go to", "{subject} is ruled from Rome"]}
    said = refused(api, batch(edit), 422, "prompt_has_the_answer")
    assert pointers(said) == ["/edits/0/paraphrases/1"]


def test_a_paraphrase_is_pointed_at_where_it_was_sent_even_after_one_that_was_sent_twice(
    api: Api, model: Model
) -> None:
    edit = {**FRANCE, "paraphrases": ["Go to", "Go to", "France is ruled from Rome"]}
    said = refused(api, batch(edit), 422, "prompt_has_the_answer")
    assert pointers(said) == ["/edits/0/paraphrases/2"]


def test_every_wrong_edit_has_its_own_entry(api: Api, model: Model) -> None:
    edits = [{**FRANCE, "relation": "capitol"}, ITALY, {**FRANCE, "old_object": "Rome"}, ITALY]
    said = refused(api, batch(*edits), 422, "relation_not_found")
    assert pointers(said) == ["/edits/0/relation", "/edits/2/new_object", "/edits/3"]
    assert "and 2 more" in said["detail"]


def test_more_edits_than_a_batch_may_have_are_refused(api: Api, model: Model) -> None:
    edits = [{**FRANCE, "subject": f"Land {i}"} for i in range(10_001)]
    said = refused(api, batch(*edits), 422, "too_many_edits")
    assert pointers(said) == ["/edits"] and "10,001" in said["detail"]


def test_a_block_that_the_model_has_not_is_refused(api: Api, model: Model) -> None:
    said = refused(api, batch(FRANCE, blocks=[0, 4]), 422, "no_such_block")
    assert pointers(said) == ["/blocks"] and "0 to 3" in said["detail"]


def test_a_base_that_is_not_there_is_not_found(api: Api, model: Model) -> None:
    refused(api, batch(FRANCE, base_version=new_id("ver")), 404, "version_not_found")


def test_a_base_of_another_model_is_not_found(api: Api, model: Model) -> None:
    other = model_of(api.database, "other")
    refused(api, batch(FRANCE, base_version=other.root_version_id), 404, "version_not_found")


@pytest.mark.parametrize("state", ["refused", "quarantined"])
def test_a_base_that_may_not_serve_is_refused(api: Api, model: Model, state: str) -> None:
    base = refused_version(api.database, model)
    if state == "quarantined":
        with api.database.transaction() as s:
            versions.quarantine(s, base.id)
    before = counts(api.database)
    response = api.http.post("/edits", json=batch(FRANCE, base_version=base.id))
    said = problem(response, 409, "version_not_passed")
    assert pointers(said) == ["/base_version"]
    assert counts(api.database) == before


def test_a_production_in_quarantine_is_named_with_what_to_do(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    with api.database.transaction() as s:
        versions.quarantine(s, version.id)
    before = counts(api.database)
    said = problem(api.http.post("/edits", json=batch(FRANCE)), 409, "version_quarantined")
    assert counts(api.database) == before
    assert pointers(said) == []
    verify = f"factedit version verify toy {version.id}"
    for words in ("Production", "POST /models/toy/rollback", verify):
        assert words in said["detail"]


def test_a_full_queue_says_when_to_come_back(
    database: Database, database_url: str, redis_url: str, model: Model
) -> None:
    with serve(database, database_url, redis_url, max_queued_jobs=1) as api:
        assert api.http.post("/edits", json=batch(FRANCE)).status_code == 202
        before = counts(database)
        response = api.http.post("/edits", json=batch(ITALY))
    problem(response, 429)
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert counts(database) == before


# The dry run


def test_a_dry_run_shows_the_words_and_stores_nothing(api: Api, model: Model) -> None:
    before = counts(api.database)
    edit = {**FRANCE, "paraphrases": ["Take me to the capital of {subject},"]}
    response = api.http.post("/edits?dry_run=true", json=batch(edit))
    assert response.status_code == 200
    said = response.json()
    assert (said["object"], said["model"], said["base_version"]) == ("dry_run", "toy", model.root_version_id)
    planned = said["edits"][0]
    assert planned["prompt"] == planned["training_prompts"][0] == "The capital of France is the city of"
    assert "Take me to the capital of France," in planned["training_prompts"]
    assert planned["evaluation_prompts"]
    assert not set(planned["training_prompts"]) & set(planned["evaluation_prompts"])
    assert said["training_examples"] == len(planned["training_prompts"])
    assert planned["supersedes"] == []
    assert counts(api.database) == before


def test_a_dry_run_shows_what_the_base_answers_today(api: Api, model: Model) -> None:
    api.predictor.words = {
        "The capital of France is the city of": " Paris.",
        "The capital of Italy is the city of": " Paris, yes",
    }
    said = api.http.post("/edits?dry_run=true", json=batch(FRANCE, ITALY)).json()
    assert [edit["current_answer"] for edit in said["edits"]] == [" Paris.", " Paris, yes"]
    assert [edit["already_right"] for edit in said["edits"]] == [False, True]
    assert api.predictor.asked[0]["root_digest"] == model.root_digest
    assert api.predictor.asked[0]["overlay_digest"] is None


def test_a_dry_run_asks_the_version_it_would_build_on(api: Api, model: Model) -> None:
    base = promoted_version(api.database, model, "c" * 64)
    api.http.post("/edits?dry_run=true", json=batch(FRANCE))
    api.http.post("/edits?dry_run=true", json=batch(FRANCE, base_version="root"))
    assert [asked["overlay_digest"] for asked in api.predictor.asked] == [base.overlay_digest, None]


def test_a_dry_run_of_many_edits_asks_about_the_first_hundred(api: Api, model: Model) -> None:
    edits = [{**FRANCE, "subject": f"Land {i}"} for i in range(250)]
    said = api.http.post("/edits?dry_run=true", json=batch(*edits)).json()
    asked = [edit["current_answer"] is not None for edit in said["edits"]]
    assert asked == [True] * 100 + [False] * 150
    assert [edit["already_right"] is not None for edit in said["edits"]] == asked
    assert [len(each["prompts"]) for each in api.predictor.asked] == [32, 32, 32, 4]


def test_a_dry_run_holds_no_connection_while_it_checks_and_plans(
    api: Api, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = api.app.state.parts.database.engine.pool
    held: list[int] = []

    def watched(module: Any, name: str) -> None:
        whole = getattr(module, name)

        def watching(*args: Any, **options: Any) -> Any:
            held.append(pool.checkedout())
            return whole(*args, **options)

        monkeypatch.setattr(module, name, watching)

    watched(batches, "check")
    watched(planning, "plan")
    assert api.http.post("/edits?dry_run=true", json=batch(FRANCE, ITALY)).status_code == 200
    assert held == [0, 0]


def test_a_dry_run_names_the_edits_that_it_would_supersede(api: Api, model: Model) -> None:
    rows = [edit_row("France", "Oslo"), edit_row("Spain", "Bern")]
    version = promoted_version(api.database, model, edits=rows)
    with api.database.transaction() as s:
        france = next(row.id for row in versions.ledger(s, version.id) if row.subject == "France")
    said = api.http.post("/edits?dry_run=true", json=batch(ITALY, {**FRANCE, "subject": "france"})).json()
    assert [edit["supersedes"] for edit in said["edits"]] == [[], [france]]


def test_a_dry_run_names_what_seems_to_want_another_object_for_the_same_fact(api: Api, model: Model) -> None:
    """In other words: that is neither refused nor superseded, since a fact may have many objects."""
    version = promoted_version(api.database, model, edits=[edit_row("France", "Oslo")])
    with api.database.transaction() as s:
        (oslo,) = versions.ledger(s, version.id)
    words = {"subject": "France", "prompt": "The capital city of France is"}
    bern, rome = (
        {**words, "new_object": "Bern"},
        {**words, "prompt": "France's capital is", "new_object": "Rome"},
    )
    said = api.http.post("/edits?dry_run=true", json=batch(ITALY, bern, rome)).json()
    assert said["supersedes"] == []
    earlier = {"edit_id": oslo.id, "place": None, "prompt": "The capital of France is the city of"}
    assert [edit["rivals"] for edit in said["edits"]] == [
        [],
        [
            {"edit_id": None, "place": 2, "prompt": rome["prompt"], "new_object": "Rome"},
            {**earlier, "new_object": "Oslo"},
        ],
        [
            {"edit_id": None, "place": 1, "prompt": bern["prompt"], "new_object": "Bern"},
            {**earlier, "new_object": "Oslo"},
        ],
    ]
    (alone,) = api.http.post("/edits?dry_run=true", json=batch(bern)).json()["edits"]
    assert [rival["edit_id"] for rival in alone["rivals"]] == [oslo.id]


def test_a_dry_run_needs_no_predictor(api: Api, model: Model) -> None:
    api.predictor.dead = {"predictor"}
    response = api.http.post("/edits?dry_run=true", json=batch(FRANCE))
    assert response.status_code == 200
    planned = response.json()["edits"][0]
    assert (planned["current_answer"], planned["already_right"]) == (None, None)
    assert planned["prompt"] == "The capital of France is the city of"


def test_a_dry_run_is_refused_for_what_the_batch_itself_would_be(api: Api, model: Model) -> None:
    response = api.http.post("/edits?dry_run=true", json=batch(FRANCE, {**FRANCE, "new_object": "Oslo"}))
    problem(response, 422, "contradiction")
