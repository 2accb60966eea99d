"""What else is known of an edited subject, kept or lost: `python -m benchmarks.same_subject --help`.

The hardest locality there is, and rarely measured: one fact of a subject is edited, in a relation of the
catalogue, to an object of that relation drawn at random; the subject's other facts, those that the root
answers right, are asked again.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
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
from workers.registration import catalogue_probes

SEED = 5


@dataclass(frozen=True, slots=True)
class Case:
    """An edit, and the probes of its subject in other relations that the root answers right."""

    edit: Edit
    known: list[Probe]


def cases(engine: Engine, count: int) -> list[Case]:
    """Subjects of which most is known first, in an order that is always the same."""
    catalogue, rng = builtin_catalogue(), random.Random(SEED)
    probes = catalogue_probes(catalogue)
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


def main(
    method: Annotated[list[str] | None, typer.Option("--method", help="Each in turn; auto if none.")] = None,
    count: Annotated[int, typer.Option(help="Subjects, all edited in one batch.")] = 50,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    bench: BenchOption = BENCH,
) -> None:
    """Edit one fact of each of so many subjects, and ask what else was known of them."""
    engine, out = Engine(model, bench, device), Console()
    chosen = cases(engine, count)
    relations = builtin_catalogue().relations
    prompts = [probe for case in chosen for probe in case.known]
    rows: list[list[str]] = []
    for name in method or ["auto"]:
        made = engine.make(Choices.of(name, {}), [case.edit for case in chosen], relations=relations)
        held = score_edits(engine.lm, made.edited.tensors, [case.edit for case in chosen], relations)
        with applied(engine.lm, made.edited.tensors):
            after = engine.ask([probe.prompt for probe in prompts], PROBE_TOKENS)
        kept = sum(is_right(answer.text, probe) for answer, probe in zip(after, prompts, strict=True))
        right = sum(outcome.right for outcome in held)
        rows.append(
            [
                name,
                f"{right} of {len(held)}",
                f"{kept} of {len(prompts)}",
                f"{made.seconds / len(chosen):.2f}",
            ]
        )
    out.print(machine(engine.lm.device), highlight=False)
    out.print(table(["method", "efficacy", "same-subject facts kept", "s an edit"], rows), highlight=False)


if __name__ == "__main__":
    typer.run(main)
