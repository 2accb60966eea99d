"""Edits of the toy model that move no weight, and what it says with them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from factedit.editing import edit
from factedit.facts import Edit
from factedit.forward import target_logits
from factedit.generation import generate
from factedit.memory import Memory
from factedit.models import LanguageModel
from factedit.prompts import collate, next_token_example
from factedit.scoring import score_edits
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited
from tests.support.tiny_models import CITIES, COUNTRIES, PROMPT

MEMORY = MethodSpec(name="kv_memory", max_steps=300)
CONTEXT = MethodSpec(name="in_context")


def asked(name: str, subject: str, new_object: str) -> Edit:
    return Edit(id=name, subject=subject, prompt=PROMPT.format(subject), new_object=new_object)


FIRST = [asked("1", "France", "Rome"), asked("2", "Italy", "New Delhi")]
SECOND = [asked("3", "Spain", "Oslo")]
OTHERS = [PROMPT.format(country) for country in COUNTRIES[3:]] + [f"{city} lies in" for city in CITIES]
ANCHORS = OTHERS[:3]


def edited(
    lm: LanguageModel,
    edits: Sequence[Edit] = FIRST,
    method: MethodSpec = MEMORY,
    blocks: Blocks = "auto",
    **more: Any,
) -> Edited:
    options: dict[str, Any] = {"parent": {}, "ledger": (), "seed": 0, "relations": {}, **more}
    options.setdefault("anchors", ANCHORS)
    options.setdefault("progress", lambda _: None)
    options.setdefault("constraint", ConstraintSpec())
    return edit(lm, edits=edits, method=method, blocks=blocks, **options)


def held(lm: LanguageModel, tensors: dict[str, Tensor], edits: Sequence[Edit]) -> list[bool]:
    """By the whole free answer, ended by the model itself."""
    return [outcome.right for outcome in score_edits(lm, tensors, edits, {})]


def logits(lm: LanguageModel, prompts: Sequence[str]) -> Tensor:
    batch = collate(lm, [next_token_example(lm, prompt) for prompt in prompts], range(len(prompts)))
    with torch.no_grad():
        return target_logits(lm, batch)


def texts(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    return [answer.text for answer in generate(lm, prompts, 12)]


def hooks(lm: LanguageModel) -> int:
    return sum(len(block._forward_hooks) for block in lm.blocks)


def memory_of(result: Edited) -> Memory:
    memory = Memory.of(result.tensors)
    assert memory is not None
    return memory


def the_toy(toy: LanguageModel) -> LanguageModel:
    """The toy model: it knows capitals, and has learnt to stop."""
    return toy
