"""What an edited model is measured by, beside its root: answers, locality, probes, drift, ability."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Json, share
from benchmarks.data import DATA, Row
from benchmarks.engine import Engine
from benchmarks.exam import in_unseen_words
from benchmarks.two_hop import two_hop
from factedit.answers import begins_with, clause, mentions
from factedit.facts import Edit, Probe
from factedit.generation import rank
from factedit.models import LanguageModel
from factedit.overlay import Overlay, applied
from factedit.prompts import answer_tokens
from factedit.relations import builtin_catalogue
from factedit.scoring import NEW_TOKENS, PROBE_TOKENS, score_edits
from workers.registration import catalogue_probes

TEXT = "wikitext2/valid.txt"
CHUNK = 256
"""Tokens of running text that are read at once."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is asked: prompts of other rows, known probes, tokens of running text."""

    others: int = 500
    probes: int = 500
    tokens: int = 8000


def measure_all(
    engine: Engine, overlay: Overlay, rows: Sequence[Row], others: Sequence[str], amounts: Amounts, data: Path
) -> Json:
    """Every measure of an overlay in which `rows` are edited; `others` are unrelated prompts."""
    subjects = {row.subject.casefold() for row in rows}
    return {
        **answers(engine, overlay, rows),
        **locality(engine, overlay, [row.locality for row in rows], others),
        **extras(engine, overlay, rows),
        "known_kept": known_kept(engine, overlay, amounts.probes, subjects),
        **ability(engine, overlay),
        **drift(engine.lm, overlay, running_text(engine.lm, amounts.tokens, data)),
    }


# The edits


def answers(engine: Engine, overlay: Overlay, every: Sequence[Row]) -> Json:
    """Efficacy and paraphrase: the whole free answer, ended by itself; teacher-forced; how it begins.

    Rows whose paraphrase the library makes from their prompt by itself have none.
    """
    found: Json = {}
    samples: list[Json] = []
    words = {"efficacy": [(row, row.prompt) for row in every]}
    words["paraphrase"] = [(row, row.paraphrase) for row in every if in_unseen_words(row)]
    for name, asked_in in words.items():
        rows = [row for row, _ in asked_in]
        # Only to score: the library's own scoring asks an edit in the words that are its prompt.
        asked = [Edit(row.id, row.subject, row.new_object, prompt=prompt) for row, prompt in asked_in]
        outcomes = score_edits(engine.lm, overlay, asked, {})
        found[name] = share(outcome.right for outcome in outcomes)
        found[f"{name}_forced"] = share(outcome.teacher_forced for outcome in outcomes)
        found[f"{name}_begins"] = share(
            begins_with(outcome.answer, (row.new_object,))
            for outcome, row in zip(outcomes, rows, strict=True)
        )
        samples += [
            {"prompt": outcome.prompt, "wanted": row.new_object, "answer": outcome.answer}
            for outcome, row in list(zip(outcomes, rows, strict=True))[:5]
        ]
    return {**found, "samples": samples}


def efficacy_of(engine: Engine, overlay: Overlay, rows: Sequence[Row]) -> list[bool]:
    """Row by row, whether the edit holds in its own prompt."""
    return [outcome.right for outcome in score_edits(engine.lm, overlay, [row.edit for row in rows], {})]


def extras(engine: Engine, overlay: Overlay, rows: Sequence[Row]) -> Json:
    """What is not promised, and told all the same.

    negated: the answer to a prompt that asks for what is wrong does not say the new object (so does a
    model that was never edited); reversed: asked from the new object, the answer begins with the subject;
    two_hop: what follows from the edit and a fact about its new object (benchmarks.two_hop).
    """
    turned = [(row.reversed, row.subject) for row in rows]
    asked = [(prompt, subject) for prompt, subject in turned if prompt is not None]
    with applied(engine.lm, overlay):
        negated = engine.ask([row.negated for row in rows], _room(engine.lm, rows))
        back = engine.ask([prompt for prompt, _ in asked], NEW_TOKENS)
    hopped, of_root = two_hop(engine, overlay, rows)
    return {
        "negated": share(
            not mentions(clause(answer.text), row.new_object)
            for answer, row in zip(negated, rows, strict=True)
        ),
        "reversed": share(
            begins_with(answer.text, (subject,)) for answer, (_, subject) in zip(back, asked, strict=True)
        ),
        "two_hop": hopped,
        "two_hop_root": of_root,
    }


def _room(lm: LanguageModel, rows: Sequence[Row]) -> int:
    lengths = [len(answer_tokens(lm, row.prompt, row.new_object)) for row in rows]
    return max([NEW_TOKENS, *(length + 4 for length in lengths)])


# Everything else


def locality(engine: Engine, overlay: Overlay, near: Sequence[str], others: Sequence[str]) -> Json:
    """Greedy answers equal to the root's: the first word, and the whole clause."""
    found: Json = {}
    for name, prompts in (("locality", list(near)), ("others", list(others))):
        before = engine.root_answers(prompts, NEW_TOKENS)
        with applied(engine.lm, overlay):
            after = [answer.text for answer in engine.ask(prompts, NEW_TOKENS, before)]
        pairs = list(zip(before, after, strict=True))
        found[f"{name}_word"] = share(a.split()[:1] == b.split()[:1] for a, b in pairs)
        found[f"{name}_clause"] = share(clause(a) == clause(b) for a, b in pairs)
    return found


def known_kept(engine: Engine, overlay: Overlay, count: int, subjects: set[str]) -> list[int]:
    """Of catalogue probes that the root answers right, how many still are; edited subjects left out."""
    probes = known_probes(engine, count, subjects)
    prompts = [probe.prompt for probe in probes]
    before = engine.root_answers(prompts, PROBE_TOKENS)
    with applied(engine.lm, overlay):
        after = [answer.text for answer in engine.ask(prompts, PROBE_TOKENS, before)]
    return share(
        is_right(new, probe)
        for old, new, probe in zip(before, after, probes, strict=True)
        if is_right(old, probe)
    )


def known_probes(engine: Engine, count: int, subjects: set[str]) -> list[Probe]:
    """The first `count`, in an order that is always the same, of those that the root answers right."""
    probes = catalogue_probes(builtin_catalogue())
    random.Random(0).shuffle(probes)
    found = engine.root_answers([probe.prompt for probe in probes], PROBE_TOKENS)
    known = [probe for probe, answer in zip(probes, found, strict=True) if is_right(answer, probe)]
    return [probe for probe in known if (probe.subject or "").casefold() not in subjects][:count]


def is_right(answer: str, probe: Probe) -> bool:
    return begins_with(answer, (probe.object, *probe.aliases))


@dataclass(frozen=True, slots=True)
class Item:
    """A multiple-choice item; the first choice is the right one."""

    kind: str
    prompt: str
    choices: tuple[str, ...]


def ability_items() -> list[Item]:
    raw: list[Mapping[str, Any]] = json.loads(
        (resources.files("benchmarks") / "ability.json").read_text(encoding="utf-8")
    )
    return [Item(item["kind"], item["prompt"], tuple(item["choices"])) for item in raw]


def ability(engine: Engine, overlay: Overlay) -> Json:
    """Items of `ability.json` whose right choice is the most probable, now and of the root."""
    items = ability_items()

    def right() -> list[bool]:
        scores = rank(engine.lm, [item.prompt for item in items], [item.choices for item in items])
        return [one[0] > max(one[1:]) for one in scores]

    asked = [[item.prompt, list(item.choices)] for item in items]
    with applied(engine.lm, overlay):
        after = right()
    return {"ability": share(after), "ability_root": share(engine.root("ability", asked, right))}


# Drift


def running_text(lm: LanguageModel, tokens: int, data: Path = DATA) -> Tensor:
    """The first tokens of WikiText-2's validation text, in rows of `CHUNK`, int64 [n, CHUNK]."""
    with (data / TEXT).open(encoding="utf-8") as file:
        text = file.read(tokens * 8)
    ids = lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor(ids[: max(1, tokens // CHUNK) * CHUNK], device=lm.device)
    return ids[: len(ids) // CHUNK * CHUNK].view(-1, CHUNK)


@torch.inference_mode()
def drift(lm: LanguageModel, overlay: Overlay, text: Tensor) -> dict[str, float]:
    """Mean KL(root || edited) per token, in nats, and both perplexities."""
    kl, nll, root_nll, count = 0.0, 0.0, 0.0, 0
    for row in text:
        root = _log_probabilities(lm, row)
        with applied(lm, overlay):
            edited = _log_probabilities(lm, row)
        kl += float(nn.functional.kl_div(edited, root, log_target=True, reduction="sum"))
        nll += float(nn.functional.nll_loss(edited[:-1], row[1:], reduction="sum"))
        root_nll += float(nn.functional.nll_loss(root[:-1], row[1:], reduction="sum"))
        count += len(row)
    predicted = count - len(text)
    return {
        "kl": kl / count,
        "perplexity": _exp(nll / predicted),
        "perplexity_root": _exp(root_nll / predicted),
    }


def _log_probabilities(lm: LanguageModel, row: Tensor) -> Tensor:
    """After each token, float32 [L, V]."""
    logits: Tensor = lm.model(input_ids=row[None], use_cache=False).logits
    return logits[0].float().log_softmax(-1)


def _exp(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).exp())


def cost(overlay: Overlay) -> int:
    """Bytes of what the version keeps: changed tensors, and a memory or notes if it has them."""
    return sum(tensor.nbytes for tensor in overlay.values())
