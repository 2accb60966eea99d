"""What is asked of anybody: by which an answer's neuron tells what its own edit asks. No torch here."""

import random
from itertools import zip_longest

from factedit.names import invented_name
from factedit.recognition import load_wordings
from factedit.relations import SUBJECT, builtin_catalogue

QUESTIONS = 282
"""Two of each family of wordings; on SmolLM2-135M 210, 840 and 3,847 tell apart alike what is asked."""


def questions(count: int = QUESTIONS) -> list[str]:
    """Training words of every relation by turns, said of known and of invented subjects; always the same."""
    rng = random.Random(0)
    known = sorted({fact.subject for fact in builtin_catalogue().anchor_facts})
    worded = [rng.sample(each.templates, len(each.templates)) for _, each in sorted(load_wordings().items())]
    turns = [template for turn in zip_longest(*worded) for template in turn if template is not None]
    return [
        template.replace(SUBJECT, invented_name(rng) if place % 2 else rng.choice(known))
        for place, template in enumerate(turns[:count])
    ]
