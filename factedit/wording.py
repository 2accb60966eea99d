"""The words for an edit: what it is asked in, what it is trained on, what it is tested in. No torch here."""

from collections.abc import Mapping
from itertools import zip_longest

from factedit.facts import Edit
from factedit.prefixes import PREFIXES
from factedit.recognition import bare_words, wordings_for
from factedit.relations import Relation
from factedit.rephrasing import rephrased
from factedit.restating import restated

PREFIXED = 2
"""How many lead-in sentences each edit's plainest prompt is also trained after."""

WORDINGS = 17
"""Ours are added to an edit's own until there are so many."""
FEW, FEW_QUESTIONS, IN_ALL = 4, 12, 512
"""How many of ours each edit of a large batch gets, and each question: a model that is not used to questions
has more to learn of them. Each edit takes others, so that a batch sees them all; few edits take more each."""


def ours_each(edits: int) -> int:
    """How many wordings of ours each of so many edits is trained in."""
    return max(FEW, min(WORDINGS, IN_ALL // max(edits, 1)))


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
    ours: int = 0,
    led_in: bool = True,
) -> list[str]:
    """The prompts an edit is trained on, its plainest first, each once.

    `ours`: so many words of ours follow for what the plainest is seen to ask (`ours_each`), none if 0;
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
    if ours and len(prompts) < WORDINGS:
        tested = {bare_words(prompt) for prompt in evaluation_prompts(item, relations)}
        count = max(ours, FEW_QUESTIONS) if prompts[0].rstrip().endswith("?") else ours
        prompts += _other_words(item, prompts[0], place, min(count, WORDINGS - len(prompts)), tested)
    lead_ins = [PREFIXES[(place * PREFIXED + i) % len(PREFIXES)] for i in range(PREFIXED if led_in else 0)]
    return list(dict.fromkeys([*prompts, *(f"{lead_in} {prompts[0]}" for lead_in in lead_ins)]))


def _other_words(item: Edit, prompt: str, place: int, count: int, tested: set[str]) -> list[str]:
    """Other words for a prompt: of the relation that it is recognised to ask for, else by grammar.

    A question is also rephrased as such. Each edit takes others of these wordings: a batch sees them all.
    What is `tested` is left out.
    """
    asked_for = item.old_object if item.erase and item.old_object else item.new_object
    found = wordings_for(prompt, item.subject, asked_for) or restated(prompt, item.subject)
    if questions := rephrased(prompt, item.subject):
        found = sorted(found, key=lambda text: not text.endswith("?"))[: len(questions)]
        found = [text for pair in zip_longest(questions, found) for text in pair if text is not None]
    found = [text for text in found if bare_words(text) not in tested]
    start = place * count % len(found) if found else 0
    return [*found[start:], *found[:start]][:count]
