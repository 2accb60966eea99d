"""A thousand clients at once: each is answered by the version it asked, or told that there are too many."""

from collections import Counter

from factedit.toy import toy_facts
from tests.support.crowd import Asking, crowd
from tests.support.tools import times
from tests.support.toy_stack import MODEL, ROOT, Json, ToyStack, capital

CLIENTS = 1000
PATIENCE_SECONDS = 50.0
"""Less than the API waits for a predictor (service.predictor_client): what takes longer timed out."""
PROMPTS = [capital(fact.subject) for fact in toy_facts()]
MANY = 60
"""Prompts of one request: five of these are more than may wait at a predictor at once."""


def question(reference: str, first: int, count: int) -> Json:
    return {"model": reference, "prompts": (PROMPTS * 2)[first : first + count], "max_tokens": 2}


def said(body: Json) -> tuple[str, list[tuple[str, str]]]:
    """Which version answered what, and to which prompts."""
    return body["model_version"], [(answer["prompt"], answer["text"]) for answer in body["answers"]]


def test_of_a_thousand_clients_each_is_answered_by_its_version_or_told_to_come_back(
    toy: ToyStack, edited: Json
) -> None:
    asked = [
        question(reference, first, count)
        for first in range(5)
        for count in (1, MANY)
        for reference in (ROOT, f"{MODEL}@{edited['id']}")
    ]
    right = [said(toy.api.post("/predict", one)) for one in asked]
    assert right[2][1] != right[3][1], "the versions agree, so that a mix-up would not show"
    address = toy.settings.api_host, toy.settings.api_port
    asking = Asking(*address, toy.key, CLIENTS, times(2, 10), asked, PATIENCE_SECONDS)
    answers = crowd(asking)
    assert len(answers) == asking.clients * asking.each
    assert Counter(answer["broke"] for answer in answers if "broke" in answer) == {}
    counted = Counter(answer["status"] for answer in answers)
    for answer in answers:
        if answer["status"] == 200:
            assert said(answer["body"]) == right[answer["question"]]
        else:
            assert (answer["status"], answer["body"]["code"]) == (503, "overloaded")
            assert answer["headers"]["content-type"] == "application/problem+json"
            assert int(answer["headers"]["retry-after"]) >= 1
    assert counted[200] and counted[503], counted
    assert said(toy.api.post("/predict", asked[0])) == right[0]
