"""Relations, their templates and the built-in catalogue of well-known facts. No torch here."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

from factedit.facts import Fact

SUBJECT = "{subject}"


@dataclass(frozen=True, slots=True)
class Relation:
    """A named relation. Training and evaluation templates never mix: the latter only ever score."""

    name: str
    training_templates: tuple[str, ...]
    evaluation_templates: tuple[str, ...] = ()
    description: str = ""
    aliases: tuple[str, ...] = ()

    def training_prompts(self, subject: str) -> list[str]:
        return [template.replace(SUBJECT, subject) for template in self.training_templates]

    def evaluation_prompts(self, subject: str) -> list[str]:
        return [template.replace(SUBJECT, subject) for template in self.evaluation_templates]


def template_problem(template: str) -> str | None:
    """What is wrong with a template, in words for the user, or None."""
    if template.count(SUBJECT) != 1:
        return f"A template contains {SUBJECT} exactly once."
    if template != template.strip():
        return "A template has no space at either end; the object follows after one space."
    return None


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like `name`, best first; spaces, hyphens and case do not count."""
    folded = {_fold(known): known for known in names}
    return [folded[hit] for hit in difflib.get_close_matches(_fold(name), folded, n=count, cutoff=0.4)]


def _fold(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Relations by name, and the facts over them."""

    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]

    def candidates(self, relation: str) -> tuple[str, ...]:
        """The distinct objects of a relation, in the catalogue's order."""
        return tuple(dict.fromkeys(fact.object for fact in self.facts if fact.relation == relation))

    @cached_property
    def probe_facts(self) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.facts if is_probe(fact.subject))

    @cached_property
    def anchor_facts(self) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.facts if not is_probe(fact.subject))


def is_probe(subject: str) -> bool:
    """Whether facts of this subject are probes (two in three) or anchors.

    Split by subject, so that no anchor says anything of a probe's subject, and by a digest, so
    that the split outlives any reordering of the catalogue.
    """
    return hashlib.sha256(subject.casefold().encode()).digest()[0] % 3 != 0


@cache
def builtin_catalogue() -> Catalogue:
    """The catalogue that ships with the library (`factedit/catalogue`)."""
    root = resources.files("factedit") / "catalogue"
    relations: dict[str, Relation] = {}
    facts: list[Fact] = []
    for entry in sorted((root / "relations").iterdir(), key=lambda e: e.name):
        raw = json.loads(entry.read_text(encoding="utf-8"))
        name = raw["name"]
        relations[name] = Relation(
            name=name,
            description=raw["description"],
            aliases=tuple(raw.get("aliases", ())),
            training_templates=tuple(raw["training_templates"]),
            evaluation_templates=tuple(raw["evaluation_templates"]),
        )
        for line in (root / "facts" / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
            subject, target, *rest = line.split("\t")
            aliases = tuple(rest[0].split("|")) if rest and rest[0] else ()
            facts.append(Fact(subject=subject, relation=name, object=target, aliases=aliases))
    return Catalogue(relations=relations, facts=tuple(facts))
