"""What every method is spared: batches that no weights could satisfy."""

from pathlib import Path

import pytest

from factedit.editing import edit
from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.specs import AnchorSpec, ConstraintSpec, MethodSpec
from factedit.task import EditingError
from tests.support.tiny_models import COUNTRIES, PROMPT, tiny_model


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return tiny_model(folder, "llama")


def run(lm: LanguageModel, *edits: Edit) -> None:
    edit(
        lm,
        parent={},
        edits=edits,
        ledger=[],
        relations={},
        anchors=[PROMPT.format(country) for country in COUNTRIES[2:]],
        method=MethodSpec(name="ft_m", max_steps=1, anchors=AnchorSpec(count=4, weight=1.0)),
        blocks=[1],
        constraint=ConstraintSpec(),
        seed=0,
        progress=lambda _: None,
    )


def asked(number: str, prompt: str, new_object: str, *paraphrases: str) -> Edit:
    return Edit(
        id=number, subject="France", prompt=prompt, new_object=new_object, paraphrases=tuple(paraphrases)
    )


@pytest.mark.parametrize("paraphrases", [(), (PROMPT.format("France"),)])
def test_edits_that_contradict_each_other_are_refused(
    lm: LanguageModel, paraphrases: tuple[str, ...]
) -> None:
    first = asked("a", PROMPT.format("France"), "Rome")
    then = asked(
        "b", "The river in France is" if paraphrases else PROMPT.format("France"), "Oslo", *paraphrases
    )
    with pytest.raises(EditingError, match=r"Edits a and b contradict .*Rome.*Oslo"):
        run(lm, first, then)


def test_the_same_answer_twice_is_none(lm: LanguageModel) -> None:
    run(lm, asked("a", PROMPT.format("France"), "Rome"), asked("b", PROMPT.format("France"), "Rome"))
