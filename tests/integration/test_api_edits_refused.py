"""POST /edits: what is refused, where the refusal points, and that it leaves nothing behind."""

import pytest

from factedit.relations import builtin_catalogue
from service import versions
from service.database import Database
from service.ids import new_id
from service.tables import Model
from tests.support.api import (
    Api,
    counts,
    model_of,
    pointers,
    problem,
    promoted_version,
    refused_version,
    serve,
)
from tests.support.edit_batches import ITALY, batch, refused
from tests.support.right_calls import FRANCE


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
