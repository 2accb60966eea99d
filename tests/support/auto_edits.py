"""Edits of tiny models by `auto`, and the task that it is asked what to do for."""

from collections.abc import Sequence
from typing import Any

from factedit.curvature import Covariance
from factedit.editing import edit
from factedit.facts import Edit, Fact
from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.prompts import Batch, answer_example, collate
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited, EditTask, plan
from tests.support.tiny_models import COUNTRIES, PROMPT

ANCHORS = [PROMPT.format(country) for country in COUNTRIES[2:]]
FRANCE = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")
ITALY = Edit(id="2", subject="Italy", prompt=PROMPT.format("Italy"), new_object="Vienna")


def ask(fact: Fact) -> str:
    return builtin_catalogue().relations["capital"].training_prompts(fact.subject)[0]


def run(lm: LanguageModel, edits: Sequence[Edit], ledger: Sequence[Edit] = (), **options: Any) -> Edited:
    blocks: Blocks = options.pop("blocks", [0, 1, 2])
    given = {
        "parent": {},
        "relations": {},
        "anchors": ANCHORS,
        "constraint": ConstraintSpec(),
        "seed": 0,
        "progress": lambda _: None,
        "method": MethodSpec(anchors=AnchorSpec(count=4, weight=1.0)),
        **options,
    }
    return edit(lm, edits=edits, ledger=ledger, blocks=blocks, **given)


def answers(lm: LanguageModel, item: Edit) -> bool:
    batch: Batch = collate(lm, [answer_example(lm, item.prompt or "", item.new_object)], [0])
    return bool((target_logits(lm, batch).argmax(-1) == batch.targets).all())


def task_of(lm: LanguageModel, edits: Sequence[Edit], ledger: Sequence[Edit]) -> EditTask:
    """To be asked what there is to do."""
    method = MethodSpec(anchors=AnchorSpec(count=4, weight=1.0))
    chosen = plan(lm, method, [0, 1, 2], ConstraintSpec())

    def background(_: Sequence[str]) -> Covariance:
        raise AssertionError("nothing is to be measured for this")

    texts = RunningText.of(lm, ANCHORS)
    return EditTask(lm, chosen, {}, edits, ledger, {}, ANCHORS, method, 0, lambda _: None, background, texts)
