"""What is asked of anybody: by which an answer's neuron tells what its own edit asks. No torch here."""

import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest

from factedit.facts import Edit
from factedit.names import invented_name
from factedit.recognition import load_wordings
from factedit.relations import SUBJECT, Relation, builtin_catalogue
from factedit.sayings import asked_for

QUESTIONS = 282
"""Two of each family of wordings; on SmolLM2-135M 210, 840 and 3,847 tell apart alike what is asked."""


@cache
def families() -> Mapping[str, str]:
    """By question, the family of wordings that it is of.

    Training words of every relation by turns, said of known and of invented subjects; always the same.
    """
    rng = random.Random(0)
    known = sorted({fact.subject for fact in builtin_catalogue().anchor_facts})
    worded = [
        [(name, template) for template in rng.sample(each.templates, len(each.templates))]
        for name, each in sorted(load_wordings().items())
    ]
    turns = [one for turn in zip_longest(*worded) for one in turn if one is not None]
    return {
        template.replace(SUBJECT, invented_name(rng) if place % 2 else rng.choice(known)): name
        for place, (name, template) in enumerate(turns[:QUESTIONS])
    }


def questions() -> list[str]:
    """All of them."""
    return [*families()]


def elsewhere(asked: Sequence[str], edit: Edit, relations: Mapping[str, Relation]) -> list[bool]:
    """Which questions ask for something else than an edit, if it is of some family that is known."""
    own = asked_for([edit], relations) & load_wordings().keys()
    found = [families().get(question) for question in asked]
    return [bool(own) and name is not None and name not in own for name in found]
