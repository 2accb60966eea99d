"""Which probes a candidate is asked first, and which only if those settle nothing. Pure; no torch here."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from factedit.facts import Edit, Probe
from factedit.relations import Relation

Group = Literal["same_subject", "same_relation", "unrelated", "earlier_edit"]
MAX_EARLIER = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """A probe, and how near it lies to the batch."""

    probe: Probe
    group: Group


@dataclass(frozen=True, slots=True)
class Selection:
    """`more` is asked when the first probes' verdict is inconclusive."""

    first: list[Asked]
    more: list[Asked]


def select(
    probes: Sequence[Probe],
    *,
    always: Collection[str],
    known: Mapping[str, bool],
    edits: Sequence[Edit],
    ledger: Sequence[Edit],
    relations: Mapping[str, Relation],
    count: int,
    seed: int,
) -> Selection:
    """Choose from a model's probes until `count` of them are known to the version in production.

    First come the users' own (`always`, by id), those on the batch's subjects, and the edits already
    in force; then, up to half the room, those of the batch's relations; then the others. Within each
    they are drawn whether known or not: McNemar's test weighs what was lost against what was gained.

    `known`: what is believed of each probe by id; what nobody knows of counts as not known. Facts
    that are themselves edited are no probes.
    """
    rng = random.Random(seed)
    batch, edited = _Facts(edits), _Facts([*edits, *ledger])
    asked = [Asked(probe, batch.group(probe)) for probe in probes if not edited.include(probe)]
    earlier = [Asked(_as_probe(edit, relations), "earlier_edit") for edit in ledger]
    first = rng.sample(earlier, min(len(earlier), MAX_EARLIER))
    first += [a for a in asked if a.probe.id in always or a.group == "same_subject"]
    rest = [a for a in asked if a.probe.id not in always and a.group != "same_subject"]
    rng.shuffle(rest)
    near = [a for a in rest if a.group == "same_relation"]
    room = count - sum(known.get(a.probe.id, False) for a in first)
    taken = _until_known(near, known, min(room, count // 2))
    room -= sum(known.get(a.probe.id, False) for a in taken)
    taken += _until_known([a for a in rest if a.group == "unrelated"], known, room)
    ids = {a.probe.id for a in taken}
    return Selection(first=[*first, *taken], more=[a for a in rest if a.probe.id not in ids])


def _until_known(asked: Sequence[Asked], known: Mapping[str, bool], count: int) -> list[Asked]:
    taken: list[Asked] = []
    for one in asked:
        if count <= 0:
            break
        taken.append(one)
        count -= known.get(one.probe.id, False)
    return taken


class _Facts:
    """What edits speak of, so that each probe is looked up once, however many edits there are."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self.subjects = {edit.subject.casefold() for edit in edits}
        self.relations = {edit.relation for edit in edits if edit.relation is not None}
        self._prompts = {prompt for edit in edits for prompt in (edit.prompt, *edit.paraphrases)}
        self._facts = {
            (edit.subject.casefold(), edit.relation) for edit in edits if edit.relation is not None
        }
        # The user's own words name no relation; the object that is to go tells which fact is meant.
        self._objects = {
            (edit.subject.casefold(), edit.old_object.casefold())
            for edit in edits
            if edit.relation is None and edit.old_object is not None
        }

    def include(self, probe: Probe) -> bool:
        """Whether a probe asks for a very fact that is edited."""
        subject = (probe.subject or "").casefold()
        return (
            probe.prompt in self._prompts
            or (subject, probe.relation) in self._facts
            or (subject, probe.object.casefold()) in self._objects
        )

    def group(self, probe: Probe) -> Group:
        if probe.subject is not None and probe.subject.casefold() in self.subjects:
            return "same_subject"
        return "same_relation" if probe.relation in self.relations else "unrelated"


def _as_probe(edit: Edit, relations: Mapping[str, Relation]) -> Probe:
    """An edit that is in force, as a fact that is to stay."""
    prompt = edit.prompt
    if prompt is None:
        assert edit.relation is not None
        prompt = relations[edit.relation].training_prompts(edit.subject)[0]
    return Probe(edit.id, prompt, edit.new_object, subject=edit.subject, relation=edit.relation)
