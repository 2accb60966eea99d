"""Which words a subject is called by, and neurons that read them: its own waits for all of these.

By what enters a middle block a name is easily taken for another that ends or sounds like it. Its words are
told apart in a low block, where little else has been mixed into a token yet. A neuron there that says nothing
fires at each word of the name, at its last token, in any letter case; the subject's own waits until all have
fired that surely do (factedit.cues). In a text that lacks one of these words it is silent.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.facts import Edit
from factedit.gated_mlp import gated_mlp
from factedit.methods.detectors import Keys, detectors, measured, silent_at
from factedit.methods.keys import Context
from factedit.methods.neurons import silent
from factedit.methods.recognisers import read_at
from factedit.methods.subject_keys import Subjects, head_of, subject_prompts
from factedit.models import LanguageModel
from factedit.named import last_named
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
SURELY = 0.5
"""What the detector of a word says at least, wherever it is asked in, if it is waited for."""
GROUP = 128
"""Subjects whose names' words are learnt at once."""


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
    """A subject, the words of its name, and what it is asked in, each with what stands up to its end."""

    subject: str
    words: Sequence[str]
    asked: Sequence[tuple[str, str]]


_Asked = list[tuple[_Named, str, list[Context]]]
"""A subject, a word of its name, and where that word is to be read in all that the subject is asked in."""


@torch.no_grad()
def readers(task: EditTask, subjects: Subjects) -> Readers:
    """Of the words of the subjects' names, each once, whatever its letter case.

    A word that is not in all that its subject is asked in, or not surely read there, is not waited for.
    """
    lm, block = task.lm, task.plan.reading
    if block is None or (mlp := gated_mlp(lm, block)) is None or not subjects:
        return Readers(None, {})
    gates = measured(lm, [block])
    background, entering = task.background(gates), task.texts.entering(lm, gates, task.parent)[mlp.gate]
    mean = background.sums[mlp.gate].to(lm.device) / background.tokens
    used, texts = silent_at(mean, entering.second_moment()), entering.rows
    places: dict[str, int] = {}
    gate = texts[:0].to(lm.tensors[mlp.gate].dtype)
    waits: dict[str, list[int]] = {}
    for start in range(0, len(subjects), GROUP):
        named = [
            _named(task, edits, start + number)
            for number, edits in enumerate(subjects[start : start + GROUP])
        ]
        new = _new_words(lm, named, places, task.seed + start * LED_IN)
        asked: _Asked = [(one, word, _in_all(lm, one.asked, word)) for one in named for word in one.words]
        seen = [context for *_, found in asked for context in found]
        if not (new or seen):
            continue
        with applied(lm, task.parent):
            own, known = read_at(lm, block, mlp, new, seen)
        count = len(places) - len(gate)
        nothing = Keys(texts[:0], torch.empty(0, dtype=torch.long, device=lm.device), texts[:0, 0])
        solved = detectors(used, own.keys(), nothing, texts, count) if count else gate[:0]
        gate = torch.cat([gate, (solved / WIDTH).to(gate.dtype)])
        for subject, place in _surely_read(asked, known.entering, gate, places):
            waits.setdefault(subject.casefold(), []).append(place)
    wanted = sorted({place for each in waits.values() for place in each})
    number = {place: at for at, place in enumerate(wanted)}
    of = {subject: tuple(number[place] for place in each) for subject, each in waits.items()}
    return Readers(_silent(gate[wanted], block) if wanted else None, of)


def _surely_read(
    asked: _Asked, entering: Tensor, gate: Tensor, places: Mapping[str, int]
) -> list[tuple[str, int]]:
    """(a subject, the place of a word of its name) wherever that is read in all that it is asked in.

    `entering`: what enters the MLP at the contexts of `asked`, one after another.
    """
    whose = [places[word] for _, word, found in asked for _ in found]
    rows = gate[torch.tensor(whose, dtype=torch.long, device=gate.device)].float()
    said = ((entering * rows).sum(1) * WIDTH).split([len(found) for *_, found in asked])
    return [
        (one.subject, places[word])
        for (one, word, found), each in zip(asked, said, strict=True)
        if found and float(each.min()) >= SURELY
    ]


def _named(task: EditTask, edits: Sequence[Edit], place: int) -> _Named:
    subject = edits[0].subject
    prompts = dict.fromkeys(prompt for edit in edits for prompt in subject_prompts(task, edit, place))
    return _Named(subject, _words(subject), [(prompt, head_of(prompt, subject)) for prompt in prompts])


def _new_words(
    lm: LanguageModel, named: Sequence[_Named], places: dict[str, int], start: int
) -> list[Context]:
    """Where to learn words that are not among `places` yet, and now are; `edit` counts the new ones."""
    found: list[Context] = []
    before = len(places)
    for number, one in enumerate(named):
        heads = list(dict.fromkeys(head for _, head in one.asked))
        for text in _learnt(one.subject, heads, start + number * LED_IN):
            for word in one.words:
                place = places.get(word, len(places))
                if place < before or (ids := _up_to(lm, text, word)) is None:
                    continue
                places[word] = place
                found.append(_context(ids, place - before))
    return found


def _words(name: str) -> list[str]:
    """Casefolded, each once."""
    words = list(dict.fromkeys(word for word, _ in _spelt(name)))
    longest = sorted(words, key=len, reverse=True)[:MOST]
    return [word for word in words if word in longest]


def _spelt(text: str) -> list[tuple[str, int]]:
    """Its words, casefolded, and where each ends. Marks belong to the letters before them."""
    found: list[tuple[str, int]] = []
    start = 0
    for at, char in enumerate(f"{text} "):
        if not (char.isalnum() or unicodedata.category(char).startswith("M")):
            if at > start:
                found.append((text[start:at].casefold(), at))
            start = at + 1
    return found


def _learnt(name: str, heads: Sequence[str], start: int) -> list[str]:
    """Texts to learn a name's words from: what it is asked in, bare and led in, in three letter cases."""
    led = [f"{PREFIXES[(start + i) % len(PREFIXES)]} {heads[i % len(heads)]}" for i in range(LED_IN)]
    found: list[str] = []
    for text in [*heads[:HEADS], *led, name]:
        at, _ = last_named(text, name) or (0, 0)
        found += [text, text[:at] + text[at:].lower(), text[:at] + text[at:].upper()]
    return list(dict.fromkeys(found))


def _in_all(lm: LanguageModel, asked: Sequence[tuple[str, str]], word: str) -> list[Context]:
    """All that is asked, up to the word's end; none if one lacks it, or reads it with what follows it."""
    found: list[Context] = []
    for prompt, head in asked:
        ids = _up_to(lm, head, word)
        if ids is None or tuple(prompt_ids(lm, prompt)[: len(ids)]) != ids:
            return []
        found.append(_context(ids, 0))
    return found


def _up_to(lm: LanguageModel, text: str, word: str) -> tuple[int, ...] | None:
    """The text up to the word's end, the last one in it; None if it lacks it or the model has no such."""
    ends = [end for each, end in _spelt(text) if each == word]
    ids = tuple(prompt_ids(lm, text[: ends[-1]])) if ends else ()
    return None if not ids or ids[-1] == lm.tokenizer.unk_token_id else ids


def _context(ids: tuple[int, ...], place: int) -> Context:
    return Context(place, Example(ids, (len(ids) - 1,), (0,)), len(ids) - 1, WEIGHT, bare=False)


def _silent(gate: Tensor, block: int) -> Neurons:
    return silent(gate, [block] * len(gate), [THRESHOLD / WIDTH] * len(gate))
