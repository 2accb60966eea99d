"""The words for an edit: what it is asked in, what it is trained on, what it is tested in. No torch here."""

from collections.abc import Mapping
from itertools import zip_longest

from factedit.facts import Edit
from factedit.prefixes import PREFIXES
from factedit.recognition import wordings_for
from factedit.relations import Relation
from factedit.rephrasing import rephrased

PREFIXED = 2
"""How many lead-in sentences each edit's plainest prompt is also trained after."""

RECOGNISED = 4
"""How many wordings of its relation a bare prompt is also trained in, if the relation is recognised."""
RECOGNISED_QUESTION = 12
"""The same for a question: a model that is not used to questions has more to learn of them."""


class NoWords(ValueError):
    """An edit with neither a prompt nor a known relation."""


def edit_prompt(edit: Edit, relations: Mapping[str, Relation]) -> str:
    """The words an edit is asked in: the user's prompt, else the relation's plainest template.

    Raises:
        NoWords: neither a prompt nor a known relation.
    """
    if edit.prompt is not None:
        return edit.prompt
    if edit.relation is None or edit.relation not in relations:
        raise NoWords(f"Edit {edit.id} has neither a prompt nor a known relation.")
    return relations[edit.relation].training_prompts(edit.subject)[0]


def plain_prompts(edit: Edit, relations: Mapping[str, Relation]) -> list[str]:
    """In which an edit must hold before all: the words it is asked in, and the user's paraphrases.

    Raises:
        NoWords: neither a prompt nor a known relation.
    """
    return [edit_prompt(edit, relations), *edit.paraphrases]


def evaluation_prompts(edit: Edit, relations: Mapping[str, Relation]) -> list[str]:
    """Words for the edit that were never trained on: the relation's evaluation templates."""
    if edit.relation is None or edit.relation not in relations:
        return []
    trained = {edit.prompt, *edit.paraphrases}
    return [p for p in relations[edit.relation].evaluation_prompts(edit.subject) if p not in trained]


def training_prompts(
    item: Edit,
    relations: Mapping[str, Relation],
    place: int = 0,
    *,
    other_words: bool = False,
    led_in: bool = True,
) -> list[str]:
    """The prompts an edit is trained on, its plainest first, each once.

    `other_words`: a bare prompt is also put in other words of the relation that it is recognised to ask for;
    `led_in`: the plainest one also follows some lead-in sentences.

    Raises:
        NoWords: neither a prompt nor a known relation.
    """
    prompts = [item.prompt] if item.prompt is not None else []
    if item.relation is not None and item.relation in relations:
        prompts += relations[item.relation].training_prompts(item.subject)
    prompts += item.paraphrases
    if not prompts:
        raise NoWords(f"Edit {place} has neither a prompt nor a known relation.")
    if other_words and len(prompts) == 1:
        prompts += _recognised(item, prompts[0], place)
    lead_ins = [PREFIXES[(place * PREFIXED + i) % len(PREFIXES)] for i in range(PREFIXED if led_in else 0)]
    return list(dict.fromkeys([*prompts, *(f"{lead_in} {prompts[0]}" for lead_in in lead_ins)]))


def _recognised(item: Edit, prompt: str, place: int) -> list[str]:
    """Other words for a bare prompt: of the relation that it is recognised to ask for (none if it is not).

    A question is also rephrased as such. Each edit takes others of these wordings: a batch sees them all.
    """
    asked_for = item.old_object if item.erase and item.old_object else item.new_object
    found = wordings_for(prompt, item.subject, asked_for)
    count = RECOGNISED
    if questions := rephrased(prompt, item.subject):
        count = RECOGNISED_QUESTION
        found = sorted(found, key=lambda text: not text.endswith("?"))[: len(questions)]
        found = [text for pair in zip_longest(questions, found) for text in pair if text is not None]
    start = place * count % len(found) if found else 0
    return [*found[start:], *found[:start]][:count]
