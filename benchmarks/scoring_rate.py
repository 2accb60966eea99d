"""How fast versions are scored, beside plain generation and bare forward passes over the same tokens.

    python -m benchmarks.scoring_rate [--model FOLDER] [--probes N] [--blocks 20,21] [--edits 10]

All rates are of one run and so of one machine in one state. The edited version is the root with noise in the
MLPs of the chosen blocks, which moves more answers than an edit that the gate lets pass. With --edits there
is another one: so many CounterFact edits by `auto`, whose neurons leave most texts alone.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.cells import Json, table
from benchmarks.data import read_rows
from benchmarks.engine import Choices, Engine
from factedit import greedy
from factedit.facts import Probe
from factedit.models import LanguageModel, iter_block_tensors
from factedit.outcomes import ProbeOutcome
from factedit.overlay import Overlay
from factedit.prefix_states import PrefixStates, shared_block
from factedit.prompts import prompt_ids
from factedit.relations import builtin_catalogue
from factedit.root_answers import RootAnswers
from factedit.scoring import PROBE_TOKENS, score_probes
from factedit.specs import ConstraintSpec, MethodSpec
from factedit.task import plan
from workers.registration import catalogue_probes

BATCH = 64
BARE = "the unchanged version's forward passes, bare"
SMALL = 100
"""So many prompts are also answered in batches of another size."""
NOISE = 0.04
"""Of each matrix's own spread."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed:
    """A way to look at all probes, and how long it took, in seconds."""

    name: str
    seconds: float


class Clock:
    def __init__(self) -> None:
        self.found: list[Timed] = []

    def __call__(self, name: str, run: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = run()
        self.found.append(Timed(name, time.perf_counter() - began))
        return result


def measure(
    lm: LanguageModel,
    probes: Sequence[Probe],
    blocks: Sequence[int] | None = None,
    written: Overlay | None = None,
) -> Json:
    """Every way's seconds, and what the answers have in common.

    `written`: a version of neurons alone, to be scored beside the one with noise.
    """
    ids = [tuple(prompt_ids(lm, probe.prompt)) for probe in probes]
    edited = noisy(lm, blocks)
    states = PrefixStates(shared_block(lm, edited) or 0)
    plainly(lm, ids[:8], BATCH)  # what is done once is done now
    clock = Clock()
    plain = clock("plain generation in batches of one length, no ranks", lambda: plainly(lm, ids, BATCH))
    root = clock("scored, nothing known of it yet", lambda: score_probes(lm, {}, probes))
    said = {outcome.probe_id: outcome.answer for outcome in root}

    def score(overlay: Overlay) -> list[ProbeOutcome]:
        known = states if overlay and states.block else None
        return score_probes(lm, overlay, probes, said=said, states=known)

    with passes_of(lm) as passes:
        score({})
    clock(BARE, lambda: bare(lm, passes))
    again = clock("scored, unchanged", lambda: score({}))
    first = clock("scored, edited", lambda: score(edited))
    second = clock(
        "scored, edited, states below its blocks known",
        lambda: score(edited),
    )
    small = plainly(lm, ids[:SMALL], 5)
    left = _measure_written(lm, probes, written, said, clock) if written is not None else {}
    return {
        **left,
        "probes": len(probes),
        "ways": [(timed.name, timed.seconds) for timed in clock.found],
        "first_block": states.block,
        "plain_same_in_other_batches": _same(plain[:SMALL], small),
        "unchanged_same": _same([o.answer for o in root], [o.answer for o in again]),
        "unchanged_ranks_same": _same([o.ranked_first for o in root], [o.ranked_first for o in again]),
        "edited_same": _same([o.answer for o in root], [o.answer for o in first]),
        "same_with_states_known": first == second,
    }


def _measure_written(
    lm: LanguageModel, probes: Sequence[Probe], written: Overlay, said: Mapping[str, str], clock: Clock
) -> Json:
    def score(root: RootAnswers | None) -> list[ProbeOutcome]:
        return score_probes(lm, written, probes, said=said, root=root)

    known = RootAnswers()
    score_probes(lm, {}, probes, said=said, root=known)
    plain = clock("scored, written", lambda: score(None))
    left = len(probes) - len(known.of(lm, written, probes))
    again = clock("scored, written, the root's answers known", lambda: score(known))
    return {"written_left": left, "written_same_with_root_known": plain == again}


def _same(left: Sequence[object], right: Sequence[object]) -> int:
    return sum(a == b for a, b in zip(left, right, strict=True))


Pass = tuple[Tensor, int]
"""Tokens read, [B, L], and after how many of them logits were computed."""


@contextmanager
def passes_of(lm: LanguageModel) -> Iterator[list[Pass]]:
    """The model's forward passes meanwhile."""
    passes: list[Pass] = []

    def note(_: nn.Module, __: Any, kwargs: dict[str, Any], output: Any) -> None:
        passes.append((kwargs["input_ids"], output.logits.shape[-2]))

    handle = lm.model.register_forward_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


@torch.inference_mode()
def bare(lm: LanguageModel, passes: Sequence[Pass]) -> None:
    """The same passes and nothing else: the likeliest token at as many places."""
    head = lm.model.get_output_embeddings()
    for ids, count in passes:
        hidden = lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        head(hidden.flatten(0, 1)[:count].contiguous()).argmax(-1)


def plainly(lm: LanguageModel, ids: Sequence[greedy.Ids], batch_size: int) -> list[greedy.Ids]:
    """Answers by the model's own `generate`, in batches of one length."""
    found = greedy.by_the_model(lm, [(each, PROBE_TOKENS) for each in dict.fromkeys(ids)], batch_size)
    answers = {begun: tuple(answer.tokens) for (begun, _), answer in found}
    return [answers[each] for each in ids]


def noisy(lm: LanguageModel, blocks: Sequence[int] | None) -> Overlay:
    """The root with noise in the MLPs of the blocks, which are those of `auto` unless told."""
    torch.manual_seed(0)
    chosen = plan(lm, MethodSpec(), list(blocks) if blocks else "auto", ConstraintSpec())

    def moved(tensor: Tensor) -> Tensor:
        return (tensor.float() + torch.randn_like(tensor.float()) * tensor.float().std() * NOISE).to(
            tensor.dtype
        )

    lower = iter_block_tensors(lm, chosen.looking_up, "mlp")
    return {name: moved(lm.tensors[name].data) for name in [*lower, *chosen.names]}


def report(found: Json) -> str:
    count = found["probes"]
    least = dict(found["ways"])[BARE]
    rows = [[name, f"{s:.1f}", f"{count / s:.1f}", f"{least / s:.2f}"] for name, s in found["ways"]]
    equal = "just" if found["same_with_states_known"] else "NOT"
    plain = f"plain generation of {min(SMALL, count)} prompts in batches of {BATCH} and of 5"
    lines = [
        table(["way", "seconds", "probes a second", "of the bare pass's rate"], rows),
        f"{count} probes; the edited version changes blocks from {found['first_block']} on.",
        f"The same whole answers: {plain}: {found['plain_same_in_other_batches']}; the unchanged version "
        f"scored again: {found['unchanged_same']}, and of its ranks {found['unchanged_ranks_same']}; "
        f"the edited version: {found['edited_same']}. With states "
        f"known, the edited version's outcomes are {equal} the same.",
    ]
    if "written_left" in found:
        equal = "just" if found["written_same_with_root_known"] else "NOT"
        lines.append(
            f"Of the written version, {found['written_left']} probes are asked though the root's answers are "
            f"known; its outcomes are {equal} the same."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a folder; the default model unless told")
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--blocks", help="which blocks the edited version changes, by comma")
    parser.add_argument("--edits", type=int, default=0, help="also a version of so many CounterFact edits")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    engine = Engine(args.model)
    probes = catalogue_probes(builtin_catalogue())
    random.Random(0).shuffle(probes)
    blocks = [int(block) for block in args.blocks.split(",")] if args.blocks else None
    written = None
    if args.edits:
        edits = [row.edit for row in read_rows("counterfact")[: args.edits]]
        written = engine.make(Choices.of("auto", {}), edits).edited.tensors
    found = measure(engine.lm, probes[: args.probes], blocks, written)
    print(json.dumps(found, indent=1) if args.json else report(found))


if __name__ == "__main__":
    main()
