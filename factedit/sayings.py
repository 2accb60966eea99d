"""What else may be asked of an edited subject: its answers are to stay as they are. No torch here."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

from factedit.facts import Edit
from factedit.recognition import load_wordings, recognise
from factedit.relations import SUBJECT, Relation, builtin_catalogue
from factedit.wording import plain_prompts

SAYINGS = 16
"""Of each subject, at least."""
AKIN, OTHERS = 24, 4
"""At most so many of them ask for what subjects of its kind are known for; at least so many, for anything."""
TRIED = 4
"""One in so many of what is akin is kept for trials."""


@dataclass(frozen=True, slots=True)
class Sayings:
    """Prompts about an edited subject, in other relations than its edits'.

    Attributes:
        akin: what else the catalogue asks of subjects of its kind, in training templates, by turns.
        others: any other family of wordings.
    """

    akin: list[str]
    others: list[str]

    def every(self) -> list[str]:
        """All of them, mixed: whatever few are taken from the front are of both kinds."""
        both = [*self.others, *self.akin]
        return random.Random(both[0]).sample(both, len(both))

    def apart(self) -> tuple[list[str], list[str]]:
        """(what a neuron may be solved for, what it is then tried on)."""
        tried = {*self.others[1::2], *self.akin[::TRIED]}
        both = [*self.others, *self.akin]
        return [text for text in both if text not in tried], [text for text in both if text in tried]


def besides(edits: Sequence[Edit], relations: Mapping[str, Relation], seed: int) -> Sayings:
    """What else may be asked about the subject of these edits, but for what a probe asks of it.

    What is akin comes in several wordings each: so held, it stays in others too.
    """
    subject, catalogue = edits[0].subject, builtin_catalogue()
    rng = random.Random(f"{seed} {subject}")
    own = asked_for(edits, relations)
    probed = {fact.relation for fact in catalogue.probe_facts if fact.subject == subject}
    kin = sorted({name for relation in own for name in _kin().get(relation, ())} - own - probed)
    worded: list[list[str]] = []
    for name in rng.sample(kin, len(kin)):
        prompts = relations.get(name, catalogue.relations[name]).training_prompts(subject)
        worded.append(rng.sample(prompts, len(prompts)))
    akin = [text for turn in zip_longest(*worded) for text in turn if text is not None][:AKIN]
    families = [wording for name, wording in sorted(load_wordings().items()) if name not in own | probed]
    others = [f"{subject} is a"]
    for wording in rng.sample(families, min(max(OTHERS, SAYINGS - len(akin)), len(families))):
        others.append(rng.choice(wording.templates).replace(SUBJECT, subject))
    others = [text for text in dict.fromkeys(others) if text not in akin]
    return Sayings(akin, others[: max(OTHERS, SAYINGS - len(akin))])


def asked_for(edits: Sequence[Edit], relations: Mapping[str, Relation]) -> set[str]:
    """The relations that edits name, and the families that their own words are of."""
    found = {edit.relation for edit in edits if edit.relation is not None}
    for edit in edits:
        for prompt in plain_prompts(edit, relations):
            if seen := recognise(prompt, edit.subject, edit.new_object):
                found.add(seen.name)
    return found


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
