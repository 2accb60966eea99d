"""What else may be asked of an edited subject: its answers are to stay as they are. No torch here."""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from factedit.facts import Edit
from factedit.recognition import load_wordings, recognise
from factedit.relations import SUBJECT, Relation, builtin_catalogue
from factedit.wording import edit_prompt

SAYINGS = 16
"""Of each subject."""


def besides(edits: Sequence[Edit], relations: Mapping[str, Relation], seed: int) -> list[str]:
    """Prompts about the subject of these edits, in other relations than theirs.

    Those of the catalogue's relations that are asked of subjects of the same kind come first, in training
    templates, but for what a probe asks of this very subject; then any other family of wordings.
    """
    subject, catalogue = edits[0].subject, builtin_catalogue()
    rng = random.Random(f"{seed} {subject}")
    own = {edit.relation for edit in edits} | set(_recognised(edits, relations))
    kin = sorted({name for relation in own for name in _kin().get(relation or "", ())} - own)
    probed = {fact.relation for fact in catalogue.probe_facts if fact.subject == subject}
    found = [f"{subject} is a"]
    for name in rng.sample(kin, len(kin)):
        if name not in probed:
            found.append(rng.choice(relations.get(name, catalogue.relations[name]).training_prompts(subject)))
    families = [wording for name, wording in sorted(load_wordings().items()) if name not in own | probed]
    for wording in rng.sample(families, min(SAYINGS, len(families))):
        found.append(rng.choice(wording.templates).replace(SUBJECT, subject))
    return found[:SAYINGS]


def _recognised(edits: Sequence[Edit], relations: Mapping[str, Relation]) -> Iterator[str]:
    """The families that the edits are trained in words of."""
    for edit in edits:
        if seen := recognise(edit_prompt(edit, relations), edit.subject, edit.new_object):
            yield seen.name


@cache
def _kin() -> Mapping[str, frozenset[str]]:
    """By relation of the catalogue, those that it has at least three subjects in common with."""
    catalogue = builtin_catalogue()
    subjects: dict[str, set[str]] = {}
    for fact in catalogue.facts:
        subjects.setdefault(fact.relation, set()).add(fact.subject)
    return {
        name: frozenset(
            other for other, theirs in subjects.items() if other != name and len(mine & theirs) > 2
        )
        for name, mine in subjects.items()
    }
