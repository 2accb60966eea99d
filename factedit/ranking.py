"""Whether a probe's true object is the most probable of its candidates, computed as far as it is in doubt.

The first tokens of an answer bound its total log-probability from above, and are all of it where there is no
other token. So what was read for the answer's sake settles most probes; of the others the object and the
rivals that are left are spelt out, the likeliest first, until one of them wins or none is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factedit.facts import Probe
from factedit.forward import target_logits
from factedit.generation import rank
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example, answer_tokens, batches, names_tokens, prompt_ids
from factedit.trees import answer_logits, can_weave

KEPT = 4096
"""Prompts of which the candidates' tokens are kept."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A candidate, and a bound from above of its total log-probability."""

    bound: float
    name: str


@dataclass(slots=True)
class Race:
    """A probe's object against its rivals.

    Attributes:
        own: the object's total log-probability; as long as it is not `spelt`, a bound from above.
        rivals: those of which it is open whether they are likelier, the likeliest first.
        first: None while it is open; of a probe without candidates for good.
        tried: the names that were spelt out, the object among them.
    """

    probe: Probe
    own: float
    spelt: bool
    rivals: list[Rival]
    first: bool | None = None
    tried: list[str] = field(default_factory=list)

    def settle(self) -> None:
        """Leave out the rivals that can't win, once the object is spelt."""
        if self.spelt and self.first is None:
            self.rivals = [rival for rival in self.rivals if rival.bound > self.own]
            if not self.rivals or math.isnan(self.own):
                self.first = not math.isnan(self.own)


def begin(lm: LanguageModel, probe: Probe, read: Sequence[int], logits: Tensor) -> Race | None:
    """The race after a probe's prompt and the tokens `read` behind it; None if the probe has no candidates.

    `logits`: after the prompt and after each of `read`. Of a masked model, `read` are the object's tokens,
    and only what it says at the first mask holds for others.
    """
    if len(probe.candidates) < 2:
        return None
    scores = _Scores(lm, read, logits)
    own, spelt = scores.bound(answer_tokens(lm, probe.prompt, probe.object), own=True)
    race = Race(probe, own, spelt, [])
    if spelt and own >= scores.best:
        race.first = True
        return race
    names = [name for name in probe.candidates if name != probe.object and name not in probe.aliases]
    for name, tokens in zip(names, _tokens(lm, probe.prompt, names), strict=True):
        bound, whole = scores.bound(tokens)
        if bound > own and whole:
            race.first = False
        elif bound > own or not spelt:
            race.rivals.append(Rival(bound, name))
    race.rivals.sort(key=lambda rival: -rival.bound)
    race.settle()
    return race


def _tokens(lm: LanguageModel, prompt: str, names: Sequence[str]) -> list[list[int]]:
    """The names' tokens, the same for every version: the tokenizer takes longer than all else in here."""
    kept: dict[tuple[str, tuple[str, ...]], list[list[int]]] = lm.__dict__.setdefault("_names_tokens", {})
    asked = (prompt if lm.reads is None else lm.reads(prompt)), tuple(names)
    if asked not in kept:
        if len(kept) >= KEPT:
            kept.clear()
        kept[asked] = names_tokens(lm, prompt, names)
    return kept[asked]


class _Scores:
    """Log-probabilities after a prompt and after the tokens read behind it, as far as they are asked for."""

    def __init__(self, lm: LanguageModel, read: Sequence[int], logits: Tensor) -> None:
        self._masked = lm.task == "masked"
        self._read = read
        self._logits = logits
        self._first = logits[0].float().log_softmax(-1).cpu()
        self._rows: dict[int, Tensor] = {0: self._first}
        self.best = float(self._first.max())

    def bound(self, tokens: Sequence[int], *, own: bool = False) -> tuple[float, bool]:
        """The log-probability of the first tokens, as far as it was read; whether that is all of them."""
        total = float(self._first[tokens[0]])
        known = 1
        while known < min(len(tokens), len(self._logits)) and self._reaches(tokens, known, own):
            total += float(self._row(known)[tokens[known]])
            known += 1
        return total, known == len(tokens)

    def _reaches(self, tokens: Sequence[int], known: int, own: bool) -> bool:
        return own if self._masked else list(tokens[:known]) == list(self._read[:known])

    def _row(self, place: int) -> Tensor:
        if place not in self._rows:
            self._rows[place] = self._logits[place].float().log_softmax(-1).cpu()
        return self._rows[place]


def finish(lm: LanguageModel, races: Sequence[Race], batch_size: int) -> None:
    """Settle every race, the likeliest rivals first: where one pass reads many, more of them at once."""
    ahead = 3 if can_weave(lm) else 1
    while left := [race for race in races if race.first is None]:
        tried = [[rival.name for rival in race.rivals[:ahead]] for race in left]
        asked = [
            names if race.spelt else [race.probe.object, *names]
            for race, names in zip(left, tried, strict=True)
        ]
        for race, names in zip(left, asked, strict=True):
            race.tried += names
        for race, names, scores in zip(left, tried, _totals(lm, left, asked, batch_size), strict=True):
            if not race.spelt:
                race.own, race.spelt = scores[0], True
            if any(score > race.own for score in scores[len(scores) - len(names) :]):
                race.first = False
            del race.rivals[:ahead]
            race.settle()
        ahead *= 8 if can_weave(lm) else 2


def _totals(
    lm: LanguageModel, races: Sequence[Race], names: Sequence[Sequence[str]], batch_size: int
) -> list[list[float]]:
    """The names' total log-probabilities, by race."""
    prompts = [race.probe.prompt for race in races]
    if not can_weave(lm):
        return rank(lm, prompts, names, batch_size)
    asked: list[Example] = []
    for prompt, each in zip(prompts, names, strict=True):
        ids = tuple(prompt_ids(lm, prompt))
        asked += [continuation(ids, tokens) for tokens in names_tokens(lm, prompt, each)]
    found = iter(totals(lm, asked))
    return [[next(found) for _ in each] for each in names]


def continuation(prompt: tuple[int, ...], tokens: Sequence[int]) -> Example:
    """Tokens that follow on a prompt's."""
    positions = tuple(range(len(prompt) - 1, len(prompt) + len(tokens) - 1))
    return Example((*prompt, *tokens[:-1]), positions, tuple(tokens))


@torch.inference_mode()
def totals(lm: LanguageModel, examples: Sequence[Example]) -> list[float]:
    """The log-probability (natural log) of each one's targets; what they begin with alike is read once."""
    found = torch.zeros(len(examples))
    for asked, logits in answer_logits(lm, examples):
        owner, rows = ([each[part] for each in asked] for part in (0, 2))
        targets = [examples[example].targets[place] for example, place, _ in asked]
        scores = logits.float().log_softmax(-1)
        found.index_add_(0, torch.tensor(owner), scores[rows, targets].cpu())
    return [float(total) for total in found]


def ranked_first(lm: LanguageModel, probes: Sequence[Probe], batch_size: int) -> list[bool | None]:
    """Whether each true object beats its candidates; None without candidates."""
    ranked = [place for place, probe in enumerate(probes) if len(probe.candidates) > 1]
    asked = [probes[place] for place in ranked]
    examples = [answer_example(lm, probe.prompt, probe.object, stop=False) for probe in asked]
    races: dict[int, Race] = {}
    for batch in batches(lm, examples, batch_size):
        with torch.inference_mode():
            logits = target_logits(lm, batch)
        start = 0
        for place in batch.index.tolist():
            targets = examples[place].targets
            race = begin(lm, asked[place], targets, logits[start : start + len(targets)])
            if race is not None:
                races[ranked[place]] = race
            start += len(targets)
    finish(lm, list(races.values()), batch_size)
    return [races[place].first if place in races else None for place in range(len(probes))]
