"""Anchors: unmodified facts whose answers are held while editing; never a probe's. No torch here."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence

from factedit.facts import Edit
from factedit.names import invented_name
from factedit.prefixes import PREFIXES
from factedit.recognition import load_wordings
from factedit.relations import SUBJECT, Catalogue, Relation
from factedit.wording import ours_each, training_prompts

BACKGROUND = 2000
"""Prompts read for the background; on SmolLM2-135M 1,500 and 5,000 protect the probes alike."""
CONTRASTS_AT_LEAST, CONTRASTS_PER_EDIT = 600, 24
"""How many contrasts a batch wants, whatever its size, and for each of its edits."""
SAME_WORDS, OTHER_WORDS = 0.4, 0.4
"""Shares of the contrasts that ask of others what the edits ask, and that ask anything of anyone."""


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
    for fact in catalogue.anchor_facts:
        if fact.subject.casefold() in edited:
            continue
        prompts = catalogue.relations[fact.relation].training_prompts(fact.subject)
        (near if fact.relation in relations else far).extend(prompts)
    neighbors = [prompt for edit in edits for prompt in edit.neighbors]
    rng.shuffle(near)
    rng.shuffle(far)
    # Half of the room at most for the edited relations: distant facts must be held as well.
    pool = dict.fromkeys([*neighbors, *near[: count // 2], *far, *near[count // 2 :]])
    forbidden = set(avoid)
    return [prompt for prompt in pool if prompt not in forbidden][:count]


def background_prompts(catalogue: Catalogue, count: int = BACKGROUND) -> list[str]:
    """What a model reads to show which directions unmodified facts use; the same for every batch.

    Anchor facts in all their training templates, drawn evenly and always alike.
    """
    prompts = [
        prompt
        for fact in catalogue.anchor_facts
        for prompt in catalogue.relations[fact.relation].training_prompts(fact.subject)
    ]
    random.Random(0).shuffle(prompts)
    return prompts[:count]


def background_of(catalogue: Catalogue, edits: Sequence[Edit], count: int = BACKGROUND) -> list[str]:
    """Those of the background prompts that speak of an edited subject: they are not to be left alone."""
    edited = {edit.subject.casefold() for edit in edits}
    mine = {
        prompt
        for fact in catalogue.anchor_facts
        if fact.subject.casefold() in edited
        for prompt in catalogue.relations[fact.relation].training_prompts(fact.subject)
    }
    return [prompt for prompt in background_prompts(catalogue, count) if prompt in mine]


def draw(
    catalogue: Catalogue,
    edits: Sequence[Edit],
    relations: Mapping[str, Relation],
    count: int,
    seed: int,
    avoid: Collection[str] = (),
    *,
    contrasting: bool,
) -> list[str]:
    """The anchors of a batch, for methods that want contrasts (factedit.presets) and for all others."""
    if contrasting:
        return contrasts(catalogue, edits, relations, min(count, enough(len(edits))), seed, avoid)
    return anchor_prompts(catalogue, edits, count, seed, avoid)


def enough(edits: int) -> int:
    """How many contrasts so many edits want."""
    return CONTRASTS_AT_LEAST + CONTRASTS_PER_EDIT * edits


def fewer(anchors: Sequence[str], edits: Sequence[Edit], count: int) -> list[str]:
    """The neighbors that the edits name, and of the other anchors an even choice: `count`, if not more."""
    named = {prompt for edit in edits for prompt in edit.neighbors}
    others = [prompt for prompt in anchors if prompt not in named]
    every = -(-len(others) // max(1, count))
    return [*(prompt for prompt in anchors if prompt in named), *others[:: max(1, every)]]


def contrasts(
    catalogue: Catalogue,
    edits: Sequence[Edit],
    relations: Mapping[str, Relation],
    count: int,
    seed: int,
    avoid: Collection[str] = (),
) -> list[str]:
    """Prompts that tell an edit's subject from all others: its own words, said of somebody else.

    An edit that is trained on "X speaks" alone changes what is said of everybody who speaks. The rest
    are the recognisable relations' words, and `anchor_prompts`. Subjects are the catalogue's anchors'
    or invented; never an edited one, nor a probe's. The answers need not be known: they are the root's.
    """
    rng = random.Random(seed)
    edited = {edit.subject.casefold() for edit in edits}
    subjects = sorted({f.subject for f in catalogue.anchor_facts if f.subject.casefold() not in edited})

    def somebody() -> str:
        return invented_name(rng) if rng.random() < 0.4 else rng.choice(subjects)

    own = list(_skeletons(edits, relations))
    others = [template for wording in load_wordings().values() for template in wording.templates]
    neighbors = [prompt for edit in edits for prompt in edit.neighbors]
    same = [rng.choice(own).replace(SUBJECT, somebody()) for _ in range(int(count * SAME_WORDS)) if own]
    other = [rng.choice(others).replace(SUBJECT, somebody()) for _ in range(int(count * OTHER_WORDS))]
    led_in = [f"{rng.choice(PREFIXES)} {p}" if rng.random() < 0.2 else p for p in [*same, *other]]
    known = anchor_prompts(catalogue, edits, count, seed, avoid)
    pool = dict.fromkeys([*neighbors, *led_in, *known])
    forbidden = set(avoid)
    return [prompt for prompt in pool if prompt not in forbidden][:count]


def _skeletons(edits: Sequence[Edit], relations: Mapping[str, Relation]) -> Iterator[str]:
    """The edits' words, lead-ins left out, with the subject's place open; those that name it."""
    for place, edit in enumerate(edits):
        for prompt in training_prompts(edit, relations, place, ours=ours_each(len(edits))):
            if edit.subject in prompt and not prompt.startswith(PREFIXES):
                yield prompt.replace(edit.subject, SUBJECT)
