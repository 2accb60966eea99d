"""Anchors: unmodified facts whose answers are held while editing; never a probe's. No torch here."""

import random
from collections.abc import Collection, Sequence

from factedit.facts import Edit
from factedit.relations import Catalogue

BACKGROUND = 2000
"""Prompts read for the background; on SmolLM2-135M 1,500 and 5,000 protect the probes alike."""


def anchor_prompts(
    catalogue: Catalogue, edits: Sequence[Edit], count: int, seed: int, avoid: Collection[str] = ()
) -> list[str]:
    """Prompts to hold: those relations that are edited first, then all others, `count` at most.

    Drawn from the catalogue's anchor facts in training templates, never from a subject that a probe
    asks about, nor from an edited subject, nor from a prompt in `avoid` (the user's own probes).
    """
    rng = random.Random(seed)
    edited = {edit.subject.casefold() for edit in edits}
    relations = {edit.relation for edit in edits if edit.relation is not None}
    near: list[str] = []
    far: list[str] = []
    for fact in catalogue.anchor_facts():
        if fact.subject.casefold() in edited:
            continue
        prompts = catalogue.relations[fact.relation].training_prompts(fact.subject)
        (near if fact.relation in relations else far).extend(prompts)
    neighbors = [prompt for edit in edits for prompt in edit.neighbors]
    rng.shuffle(near)
    rng.shuffle(far)
    # Half of the room at most for the edited relations: distant facts must be held as well.
    pool = dict.fromkeys([*neighbors, *near[: count // 2], *far, *near[count // 2 :]])
    kept = [prompt for prompt in pool if prompt not in set(avoid)]
    return kept[:count]


def background_prompts(catalogue: Catalogue, count: int = BACKGROUND) -> list[str]:
    """What a model reads to show which directions unmodified facts use; the same for every batch.

    Anchor facts in all their training templates, drawn evenly and always alike.
    """
    prompts = [
        prompt
        for fact in catalogue.anchor_facts()
        for prompt in catalogue.relations[fact.relation].training_prompts(fact.subject)
    ]
    random.Random(0).shuffle(prompts)
    return prompts[:count]


def background_of(catalogue: Catalogue, edits: Sequence[Edit], count: int = BACKGROUND) -> list[str]:
    """Those of the background prompts that speak of an edited subject: they are not to be left alone."""
    edited = {edit.subject.casefold() for edit in edits}
    mine = {
        prompt
        for fact in catalogue.anchor_facts()
        if fact.subject.casefold() in edited
        for prompt in catalogue.relations[fact.relation].training_prompts(fact.subject)
    }
    return [prompt for prompt in background_prompts(catalogue, count) if prompt in mine]
