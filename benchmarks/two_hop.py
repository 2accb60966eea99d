"""What follows from an edit and from a fact about its new object that the root knows.

A museum was edited to stand in Japan: is "the country in which" it "is located, whose capital city is" Tokyo?
Asked only where the root answers right of Japan itself, in the same words. Source of this kind of measure:
Cohen et al. 2024, "Evaluating the Ripple Effects of Knowledge Editing in Language Models", section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cells import share
from benchmarks.data import Row
from benchmarks.engine import Engine
from factedit.answers import begins_with
from factedit.overlay import Overlay, applied
from factedit.recognition import recognise
from factedit.relations import SUBJECT, Catalogue, builtin_catalogue
from factedit.scoring import PROBE_TOKENS

DESCRIBED: Mapping[str, str] = {
    "birthplace": "the place where {} was born",
    "citizenship": "the country of which {} is a citizen",
    "country_located_in": "the country in which {} is located",
    "country_of_origin": "the country that {} comes from",
    "death_place": "the place where {} died",
    "headquarters": "the place where {} has its headquarters",
    "home_country": "the country that {} calls home",
    "located_in": "the place where {} is located",
    "place_formed": "the place where {} was formed",
    "twin_city": "the twin city of {}",
    "work_location": "the place where {} worked",
}
"""The new object by what an edit makes it of its subject, by the family of wordings of the edit's prompt."""
THEN: Mapping[str, str] = {
    "capital": "{subject}, whose capital city is",
    "currency": "The legal tender of {subject} is the",
    "official_language": "In {subject}, the national language is",
    "continent": "{subject} lies on the continent of",
    "country_of_city": "People who live in {subject} are residents of",
    "us_state_of_city": "{subject} is one of the largest cities in the state of",
}
"""Relations of places in the catalogue, and of each an evaluation template that a description fits in too."""


KINDS = ("capital", "state_capital", "country_of_city", "us_state_of_city")
"""What a country, a state and a city have: a name that has two of them is two places' name."""


@dataclass(frozen=True, slots=True)
class Hop:
    """`prompt` asks `direct` of a description of the new object; both are answered by `answers`."""

    prompt: str
    direct: str
    answers: tuple[str, ...]


def hops(rows: Sequence[Row], catalogue: Catalogue) -> list[Hop]:
    """Of each row that has one, the first in the order of `THEN`.

    None where the new object is itself edited, or more than one place has its name.
    """
    known = {(fact.subject.casefold(), fact.relation): fact for fact in reversed(catalogue.facts)}
    edited = {row.subject.casefold() for row in rows}
    found: list[Hop] = []
    for row in rows:
        place = row.new_object.casefold()
        if place in edited or sum((place, kind) in known for kind in KINDS) > 1:
            continue
        family = recognise(row.prompt, row.subject, row.new_object)
        if family is None or family.name not in DESCRIBED:
            continue
        described = DESCRIBED[family.name].format(row.subject)
        for name, template in THEN.items():
            if (fact := known.get((place, name))) is not None:
                prompt, direct = (template.replace(SUBJECT, of) for of in (described, fact.subject))
                found.append(Hop(prompt[0].upper() + prompt[1:], direct, (fact.object, *fact.aliases)))
                break
    return found


def two_hop(engine: Engine, overlay: Overlay, rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """([how many are answered as the edits imply, of how many], the same of the unedited root)."""
    if not (asked := hops(rows, builtin_catalogue())):
        return [0, 0], [0, 0]
    told = engine.root_answers([hop.direct for hop in asked], PROBE_TOKENS)
    asked = [hop for hop, text in zip(asked, told, strict=True) if begins_with(text, hop.answers)]
    prompts = [hop.prompt for hop in asked]
    before = engine.root_answers(prompts, PROBE_TOKENS)
    with applied(engine.lm, overlay):
        after = [answer.text for answer in engine.ask(prompts, PROBE_TOKENS, before)]

    def right(texts: Sequence[str]) -> list[int]:
        return share(begins_with(text, hop.answers) for text, hop in zip(texts, asked, strict=True))

    return right(after), right(before)
