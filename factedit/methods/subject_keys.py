"""By what a neuron knows its subject: its keys in many contexts, beside those of names that sound like it."""

import random
from collections.abc import Sequence
from functools import cache

from factedit.facts import Edit
from factedit.methods.keys import Context
from factedit.models import LanguageModel
from factedit.named import last_named
from factedit.names import made_alike, namesakes
from factedit.prefixes import PREFIXES
from factedit.prompts import Example, prompt_ids
from factedit.relations import builtin_catalogue
from factedit.task import EditTask
from factedit.wording import ours_each, training_prompts

LEAD_INS = 12
"""Neutral sentences after which each subject's key is also read."""
BARE = 0.5
"""Weight of the subject at the very start of a prompt, where its key is another; the rest is led in."""
LOWER, UPPER = 0.1, 0.02
"""Parts of it, in small and in capital letters: little is enough, and more of it costs precision."""
ALIKE = 6
"""Names that sound like a subject, for each."""
NAMESAKES = 24
"""Others, in the very words that the subject is asked for in."""
LED_IN = 4
"""One in so many of them after a neutral sentence instead."""
ANYBODY = 60
"""Other subjects, and their first words alone, to which no detector may answer."""

Subjects = list[list[Edit]]
"""Edits of one subject share its neuron."""


def subject_contexts(task: EditTask, mine: Subjects, others: Subjects) -> list[Context]:
    """Each subject in several contexts, and once each those whose neurons are others."""
    own = [context for place, edits in enumerate(mine) for context in _contexts(task, edits, place, LEAD_INS)]
    return [*own, *(_contexts(task, edits, -1, 0)[0] for edits in others)]


def alike_contexts(task: EditTask, mine: Subjects) -> list[Context]:
    """Names that each subject might be taken for, of their own place; and anybody's, of place -1."""
    subjects = sorted({fact.subject for fact in builtin_catalogue().anchor_facts})
    heads = [subject.split()[0] for subject in subjects]
    edited = {edit.subject.casefold() for edits in mine for edit in edits}
    anybody = random.Random(task.seed).sample(subjects, min(ANYBODY, len(subjects)))
    names = dict.fromkeys([*anybody, *(subject.split()[0] for subject in anybody)])
    found = [_context(task.lm, name, -1, 0.0) for name in names if name.casefold() not in edited]
    for place, edits in enumerate(mine):
        rng = random.Random(f"{task.seed} {edits[0].subject}")
        for number, name in enumerate(namesakes(edits[0].subject, heads, ALIKE, rng)):
            text = f"{rng.choice(PREFIXES)} {name}" if number % 2 else name
            if name.casefold() not in edited:
                found.append(_context(task.lm, text, place, 0.0))
    return found


def namesake_contexts(task: EditTask, mine: Subjects) -> list[Context]:
    """Names made like each subject's, of its own place, in the words that it stands in itself."""
    words = subject_words()
    edited = {edit.subject.casefold() for edit in [*task.edits, *task.ledger]}
    found: list[Context] = []
    for place, edits in enumerate(mine):
        subject, rng = edits[0].subject, random.Random(f"{task.seed} {edits[0].subject}")
        heads = [head for head in subject_heads(task, edits, place) if head.endswith(subject)]
        names = dict.fromkeys(made_alike(subject, words, rng) for _ in range(NAMESAKES))
        for number, name in enumerate(names):
            led_in = f"{rng.choice(PREFIXES)} " if number % (2 * LED_IN) else ""
            before = rng.choice(heads).removesuffix(subject) if heads and number % LED_IN else led_in
            if name.casefold() not in edited:
                found.append(_context(task.lm, f"{before}{name}", place, 0.0))
    return found


@cache
def subject_words() -> Sequence[str]:
    """What the catalogue's subjects are called by, each word once."""
    subjects = {fact.subject for fact in builtin_catalogue().anchor_facts}
    return sorted({word for subject in subjects for word in subject.split() if len(word) > 2})


def subject_prompts(task: EditTask, edit: Edit, place: int) -> list[str]:
    """The prompts that an edit of a subject is written in."""
    ours = ours_each(len(task.edits)) if task.plan.preset.other_words else 0
    return training_prompts(edit, task.relations, place, ours=ours)


def _contexts(task: EditTask, edits: Sequence[Edit], owner: int, lead_ins: int) -> list[Context]:
    """A subject as far as it is read when it is looked up: bare, led in by sentences, in other letters."""
    heads = subject_heads(task, edits, max(owner, 0))
    start = task.seed + max(owner, 0) * lead_ins
    led = [PREFIXES[(start + i) % len(PREFIXES)] for i in range(lead_ins)]
    spelt = {heads[0].lower(): LOWER, heads[0].upper(): UPPER} if led else {}
    spelt = {t: share for t, share in spelt.items() if t not in heads and _ends_in_a_known_token(task.lm, t)}
    bare = ((BARE if led else 1.0) - sum(spelt.values())) / len(heads)
    return [
        *(_context(task.lm, text, owner, bare) for text in heads),
        *(_context(task.lm, text, owner, share) for text, share in spelt.items()),
        *(
            _context(task.lm, f"{sentence} {heads[i % len(heads)]}", owner, (1 - BARE) / len(led))
            for i, sentence in enumerate(led)
        ),
    ]


def _context(lm: LanguageModel, text: str, owner: int, weight: float) -> Context:
    ids = tuple(prompt_ids(lm, text))
    return Context(owner, Example(ids, (len(ids) - 1,), (0,)), len(ids) - 1, weight, bare=False)


def _ends_in_a_known_token(lm: LanguageModel, text: str) -> bool:
    return bool(prompt_ids(lm, text)[-1] != lm.tokenizer.unk_token_id)


def subject_heads(task: EditTask, edits: Sequence[Edit], place: int) -> list[str]:
    """What a subject is asked in up to its end, each once."""
    prompts = [prompt for edit in edits for prompt in subject_prompts(task, edit, place)]
    return list(dict.fromkeys(head_of(prompt, edits[0].subject) for prompt in prompts))


def head_of(prompt: str, subject: str) -> str:
    """What stands up to the subject's end; the whole prompt, where the subject is not in it."""
    place = last_named(prompt, subject)
    return prompt if place is None else prompt[: place[1]]
