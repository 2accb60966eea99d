"""Which words a subject is called by, and neurons that read them: its own waits for all of these.

By what enters a middle block a name is easily taken for another that ends or sounds like it. Its words are
told apart in a low block, where little else has been mixed into a token yet. A neuron there that says nothing
fires at each word of the name, at its last token, in any letter case; the subject's own waits until all have
fired (factedit.cues). A text that lacks one of them is answered as if there were no edit of that subject.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.cues import AUDIBLE
from factedit.facts import Edit
from factedit.gated_mlp import gated_mlp
from factedit.methods.detectors import Keys, detectors, measured, silent_at
from factedit.methods.keys import Context
from factedit.methods.recognisers import read_at
from factedit.methods.subject_keys import Subjects, subject_heads
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.prefixes import PREFIXES
from factedit.prompts import Example, prompt_ids
from factedit.task import EditTask

MOST = 8
"""Of a longer name so many words are read, the longest ones."""
HEADS, LED_IN = 6, 3
"""In how many of the subject's own wordings a word is learnt, and after how many neutral sentences."""
WEIGHT = 0.1
"""Of each of them in the regression."""
THRESHOLD, WIDTH = 0.4, 0.1
"""A word's neuron fires where its detector, 1 at the word and 0 elsewhere, exceeds the threshold."""
MARGIN = 0.1
"""By so much more it is to fire than is heard, where it is waited for."""
GROUP = 128
"""Subjects whose names' words are learnt at once."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Readers:
    """Silent neurons that read words.

    Attributes:
        neurons: one a word; None: there is none.
        of: by subject (casefolded), the places among them of those that its own waits for.
    """

    neurons: Neurons | None
    of: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Named:
    """A subject: its edits, the words of its name, what it is asked in up to its end."""

    edits: Sequence[Edit]
    words: Sequence[str]
    heads: Sequence[str]

    @property
    def subject(self) -> str:
        return self.edits[0].subject


@torch.no_grad()
def readers(task: EditTask, subjects: Subjects) -> Readers:
    """Of the words of the subjects' names, each once, whatever its letter case.

    A word that is not in all that its subject is asked in, or not surely read there, is not waited for.
    """
    lm, block = task.lm, task.plan.reading
    if block is None or (mlp := gated_mlp(lm, block)) is None or not subjects:
        return Readers(None, {})
    gates = measured(lm, [block])
    background, texts = task.background(gates), task.texts.entering(lm, gates, task.parent)[mlp.gate]
    silent = silent_at(background.sums[mlp.gate].to(lm.device) / background.tokens, texts)
    places: dict[str, int] = {}
    gate = texts[:0].to(lm.tensors[mlp.gate].dtype)
    waits: dict[str, list[int]] = {}
    for start in range(0, len(subjects), GROUP):
        named = [
            _Named(edits, _words(edits[0].subject), subject_heads(task, edits, start + number))
            for number, edits in enumerate(subjects[start : start + GROUP])
        ]
        new = _new_words(lm, named, places, task.seed + start * LED_IN)
        asked = [(one, word, _in(lm, one.heads, word, 0)) for one in named for word in one.words]
        seen = [context for *_, found in asked for context in found or []]
        if not (new or seen):
            continue
        with applied(lm, task.parent):
            own, known = read_at(lm, block, mlp, new, seen)
        count = len(places) - len(gate)
        nothing = Keys(texts[:0], torch.empty(0, dtype=torch.long, device=lm.device), texts[:0, 0])
        solved = detectors(silent, own.keys(), nothing, texts, count) if count else gate[:0]
        gate = torch.cat([gate, (solved / WIDTH).to(gate.dtype)])
        at = iter(known.entering)
        for one, word, found in asked:
            said = [float(next(at) @ gate[places[word]].float()) for _ in found or []]
            if said and min(said) > THRESHOLD / WIDTH + AUDIBLE + MARGIN:
                waits.setdefault(one.subject.casefold(), []).append(places[word])
    used = sorted({place for each in waits.values() for place in each})
    of = {subject: tuple(used.index(place) for place in each) for subject, each in waits.items()}
    return Readers(_silent(gate[used], block) if used else None, of)


def _new_words(
    lm: LanguageModel, named: Sequence[_Named], places: dict[str, int], start: int
) -> list[Context]:
    """Where to learn words that are not among `places` yet, and now are; `edit` counts the new ones."""
    found: list[Context] = []
    before = len(places)
    for number, one in enumerate(named):
        for text in _learnt(one.subject, one.heads, start + number * LED_IN):
            for word in one.words:
                place = places.get(word, len(places))
                if place >= before and (more := _in(lm, [text], word, place - before)):
                    places[word] = place
                    found += more
    return found


def _words(name: str) -> list[str]:
    """Casefolded, each once."""
    words = list(dict.fromkeys(found.group().casefold() for found in _WORD.finditer(name)))
    longest = sorted(words, key=len, reverse=True)[:MOST]
    return [word for word in words if word in longest]


def _learnt(name: str, heads: Sequence[str], start: int) -> list[str]:
    """Texts to learn a name's words from: what it is asked in, bare and led in, in three letter cases."""
    led = [f"{PREFIXES[(start + i) % len(PREFIXES)]} {heads[i % len(heads)]}" for i in range(LED_IN)]
    found: list[str] = []
    for text in [*heads[:HEADS], *led, name]:
        at = max(0, text.lower().rfind(name.lower()))
        found += [text, text[:at] + text[at:].lower(), text[:at] + text[at:].upper()]
    return found


def _in(lm: LanguageModel, texts: Sequence[str], word: str, place: int) -> list[Context] | None:
    """Texts up to the word's end, the last one in each; None if one lacks it or the model has no such."""
    found: list[Context] = []
    for text in texts:
        ends = [match.end() for match in _WORD.finditer(text) if match.group().casefold() == word]
        ids = tuple(prompt_ids(lm, text[: ends[-1]])) if ends else ()
        if not ids or ids[-1] == lm.tokenizer.unk_token_id:
            return None
        found.append(Context(place, Example(ids, (len(ids) - 1,), (0,)), len(ids) - 1, WEIGHT, bare=False))
    return found


def _silent(gate: Tensor, block: int) -> Neurons:
    """Neurons that fire by these rows, [n, d], and say nothing."""
    nothing, free = torch.zeros_like(gate), torch.full((len(gate), 1), -1, device=gate.device)
    thresholds = gate.new_tensor([[THRESHOLD / WIDTH, -1.0]]).repeat(len(gate), 1)
    return Neurons(torch.full_like(free[:, 0], block), gate, nothing, thresholds, nothing, free)
