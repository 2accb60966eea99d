"""POST /edits?dry_run=true: what a batch would train on and supersede, and what its base answers today."""

from typing import Any

import pytest

from service import batches, planning, versions
from service.tables import Model
from tests.support.api import Api, counts, problem, promoted_version
from tests.support.edit_batches import ITALY, batch
from tests.support.records import edit_row
from tests.support.right_calls import FRANCE


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
