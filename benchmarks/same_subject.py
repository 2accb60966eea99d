"""What else is known of an edited subject, kept or lost: `python -m benchmarks.same_subject --help`.

The hardest locality there is, and rarely measured: one fact of a subject is edited, in a relation of the
catalogue, to an object of that relation drawn at random; the subject's other facts, those that the root
answers right, are asked again, in words that nothing is trained in.

Of subjects that are probes the library never asks such facts by itself, in whatever words; of others it may,
in training templates (factedit.sayings). Most of a user's subjects are of the second kind.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cells import table
from benchmarks.engine import BENCH, Choices, Engine
from benchmarks.limits import machine
from benchmarks.measures import is_right
from benchmarks.options import BenchOption, DeviceOption, ModelOption
from factedit.facts import Edit, Fact, Probe
from factedit.overlay import applied
from factedit.relations import builtin_catalogue
from factedit.scoring import PROBE_TOKENS, score_edits
from factedit.wording import edit_prompt, evaluation_prompts
from workers.registration import catalogue_probes

SEED = 5


class By(StrEnum):
    RELATION = "relation"
    PROMPT = "prompt"


class Subjects(StrEnum):
    PROBES = "probes"
    OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Case:
    """An edit by relation, and probes of its subject in other relations that the root answers right."""

    edit: Edit
    known: list[Probe]

    def edited(self, by: By) -> Edit:
        """As a user would ask for it: by the relation, or by its plainest words as a bare prompt."""
        if by is By.RELATION:
            return self.edit
        prompt = edit_prompt(self.edit, builtin_catalogue().relations)
        return Edit(self.edit.id, self.edit.subject, self.edit.new_object, prompt=prompt)

    def in_other_words(self) -> list[Edit]:
        """The edit asked for in the relation's evaluation templates, to score only."""
        edit = self.edit
        prompts = evaluation_prompts(edit, builtin_catalogue().relations)
        return [Edit(edit.id, edit.subject, edit.new_object, prompt=prompt) for prompt in prompts]


def cases(engine: Engine, count: int, subjects: Subjects = Subjects.PROBES) -> list[Case]:
    """Subjects of which most is known first, in an order that is always the same."""
    catalogue, rng = builtin_catalogue(), random.Random(SEED)
    probes = catalogue_probes(catalogue) if subjects is Subjects.PROBES else [*_others()]
    answers = engine.root_answers([probe.prompt for probe in probes], PROBE_TOKENS)
    known: dict[str, list[Probe]] = defaultdict(list)
    for probe, answer in zip(probes, answers, strict=True):
        if probe.subject is not None and is_right(answer, probe):
            known[probe.subject].append(probe)
    facts: dict[str, dict[str, Fact]] = defaultdict(dict)
    for fact in catalogue.facts:
        facts[fact.subject][fact.relation] = fact
    found: list[Case] = []
    for subject in sorted(known):
        others = {r: [p for p in known[subject] if p.relation != r] for r in sorted(facts[subject])}
        relation = max(others, key=lambda name: len(others[name]))
        objects = [o for o in catalogue.candidates(relation) if o != facts[subject][relation].object]
        if others[relation] and objects:
            edit = Edit(f"same-{len(found)}", subject, rng.choice(objects), relation=relation)
            found.append(Case(edit, others[relation]))
    rng.shuffle(found)
    return sorted(found, key=lambda case: -len(case.known))[:count]


def _others() -> Iterator[Probe]:
    """The facts of subjects that are no probes, in all evaluation templates."""
    catalogue = builtin_catalogue()
    for fact in catalogue.anchor_facts:
        for number, prompt in enumerate(catalogue.relations[fact.relation].evaluation_prompts(fact.subject)):
            yield Probe(
                id=f"{fact.subject} {fact.relation} {number}",
                prompt=prompt,
                object=fact.object,
                aliases=fact.aliases,
                subject=fact.subject,
                relation=fact.relation,
            )


@dataclass(frozen=True, slots=True)
class Found:
    """Of some cases: edits that hold, and in other words, of how many; facts kept; seconds of editing."""

    right: int
    worded: int
    words: int
    kept: int
    seconds: float


def measured(engine: Engine, method: str, batch: Sequence[Case], by: By) -> Found:
    """One batch by one method."""
    relations, edits = builtin_catalogue().relations, [case.edited(by) for case in batch]
    made = engine.make(Choices.of(method, {}), edits, relations=relations)
    held = score_edits(engine.lm, made.edited.tensors, edits, relations)
    asked = [edit for case in batch for edit in case.in_other_words()]
    worded = score_edits(engine.lm, made.edited.tensors, asked, relations)
    probes = [probe for case in batch for probe in case.known]
    with applied(engine.lm, made.edited.tensors):
        after = engine.ask([probe.prompt for probe in probes], PROBE_TOKENS)
    return Found(
        sum(outcome.right for outcome in held),
        sum(outcome.right for outcome in worded),
        len(worded),
        sum(is_right(answer.text, probe) for answer, probe in zip(after, probes, strict=True)),
        made.seconds,
    )


def main(
    method: Annotated[list[str] | None, typer.Option("--method", help="Each in turn; auto if none.")] = None,
    count: Annotated[int, typer.Option(help="Subjects.")] = 50,
    at_once: Annotated[int, typer.Option(help="Edits in a batch; 0: all in one.")] = 0,
    by: Annotated[By, typer.Option(help="How the edits are asked for.")] = By.RELATION,
    subjects: Annotated[Subjects, typer.Option(help="Whose facts.")] = Subjects.PROBES,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    bench: BenchOption = BENCH,
) -> None:
    """Edit one fact of each of so many subjects, and ask what else was known of them."""
    engine, out = Engine(model, bench, device), Console()
    chosen = cases(engine, count, subjects)
    known = sum(len(case.known) for case in chosen)
    rows: list[list[str]] = []
    for name in method or ["auto"]:
        size = at_once or len(chosen)
        batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        found = [measured(engine, name, batch, by) for batch in batches]
        rows.append(
            [
                name,
                f"{sum(each.right for each in found)} of {len(chosen)}",
                f"{sum(each.worded for each in found)} of {sum(each.words for each in found)}",
                f"{sum(each.kept for each in found)} of {known}",
                f"{sum(each.seconds for each in found) / len(chosen):.2f}",
            ]
        )
    header = ["method", "efficacy", "in other words", "same-subject facts kept", "s an edit"]
    out.print(machine(engine.lm.device), highlight=False)
    out.print(table(header, rows), highlight=False)


if __name__ == "__main__":
    typer.run(main)
