"""What is asked besides free text, ranked candidates and likely next tokens, read a slice a turn.

A thousand candidates are a thousand sequences to read. No turn waits for them all: others are answered
between two slices, and whoever leaves has no further one read.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from factedit.generation import TokenProbability, log_probabilities, next_tokens
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example
from factedit.ranking import continuation
from workers.predictor.errors import NoNumbers, PredictorError
from workers.predictor.questions import Asked, Candidate, Token

SLICE = 512
"""Tokens that a slice reads at most, padding included, or else one sequence: as many as the decoder reads."""
SMALL_SLICE = 128
"""The same where free text is under way, whose every token waits for a slice."""


@dataclass(frozen=True, slots=True)
class Besides:
    """The most probable next tokens and the candidates, best first, where asked for."""

    top_k: tuple[Token, ...] | None = None
    candidates: tuple[Candidate, ...] | None = None


@dataclass(eq=False, slots=True)
class _Reading:
    """A question of which something is still to be read.

    Attributes:
        length: its prompt's tokens.
        examples: its candidates after its prompt.
        scores: the total log-probabilities of the first ones, as many as have been read.
        likely: the next tokens, once they are read.
    """

    asked: Asked
    length: int
    examples: Sequence[Example]
    scores: list[float] = field(default_factory=list)
    likely: list[TokenProbability] | None = None

    @property
    def left(self) -> int:
        return len(self.examples) - len(self.scores) + self.asks_next

    @property
    def asks_next(self) -> bool:
        return self.asked.question.top_k is not None and self.likely is None

    def unread(self) -> "Iterator[tuple[_Reading, Example | None]]":
        """Its sequences: None stands for the prompt alone, after which next tokens are asked for."""
        if self.asks_next:
            yield self, None
        for example in islice(self.examples, len(self.scores), None):
            yield self, example

    def besides(self) -> Besides:
        """Raises NoNumbers."""
        question = self.asked.question
        likely, names = self.likely, question.candidates
        return Besides(
            None
            if likely is None
            else tuple(Token(each.token, _number(each.probability)) for each in likely),
            None if names is None else _best_first(names, self.scores),
        )


class Reader:
    """What a version's questions ask besides free text. Its weights must be in place at every step."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._readings: dict[Asked, _Reading] = {}  # the oldest first
        self._oldest_first = False

    def join(self, asked: Asked, ids: Sequence[int], named: Sequence[Sequence[int]]) -> None:
        """`ids` and `named` are the tokens of its prompt and of its candidates."""
        if self._lm.task == "causal":
            examples = [continuation(tuple(ids), tokens) for tokens in named]
        else:
            prompt, names = asked.question.prompt, asked.question.candidates or ()
            examples = [answer_example(self._lm, prompt, name, stop=False) for name in names]
        self._readings[asked] = _Reading(asked, len(ids), examples)

    def leave(self, asked: Asked) -> None:
        self._readings.pop(asked, None)

    def step(self, most: int = SLICE) -> list[tuple[Asked, Besides | PredictorError]]:
        """Read one slice of `most` tokens, if there is anything to read; those of whom all is read."""
        chosen = self._slice(most)
        ranked = [(reading, example) for reading, example in chosen if example is not None]
        scores = log_probabilities(self._lm, [example for _, example in ranked])
        for (reading, _), score in zip(ranked, scores, strict=True):
            reading.scores.append(score)
        self._ask_next([reading for reading, example in chosen if example is None])
        whole = [reading.asked for reading in {reading for reading, _ in chosen} if not reading.left]
        return [(asked, self._result(self._readings.pop(asked))) for asked in whole]

    def _slice(self, most: int) -> list[tuple[_Reading, Example | None]]:
        chosen: list[tuple[_Reading, Example | None]] = []
        longest = 0
        for reading, example in self._in_turn():
            longest = max(longest, reading.length if example is None else len(example.ids))
            if chosen and (len(chosen) + 1) * longest > most:
                break
            chosen.append((reading, example))
        return chosen

    def _in_turn(self) -> "Iterator[tuple[_Reading, Example | None]]":
        """Every other slice begins with the oldest question, so that it ends; the rest with the shortest."""
        order = sorted(self._readings.values(), key=lambda reading: reading.left)
        if self._oldest_first and order:
            oldest = next(iter(self._readings.values()))
            order = [oldest, *(reading for reading in order if reading is not oldest)]
        self._oldest_first = not self._oldest_first
        for reading in order:
            yield from reading.unread()

    def _ask_next(self, readings: Sequence[_Reading]) -> None:
        if not readings:
            return
        questions = [reading.asked.question for reading in readings]
        counts = [question.top_k or 0 for question in questions]
        best = next_tokens(self._lm, [question.prompt for question in questions], max(counts))
        for reading, row, count in zip(readings, best, counts, strict=True):
            reading.likely = row[:count]

    def _result(self, reading: _Reading) -> Besides | PredictorError:
        try:
            return reading.besides()
        except NoNumbers as error:
            return error


def _best_first(names: Sequence[str], log_probabilities: Sequence[float]) -> tuple[Candidate, ...]:
    top = max(map(_number, log_probabilities))
    shares = [math.exp(score - top) for score in log_probabilities]
    total = sum(shares)
    rows = zip(names, log_probabilities, shares, strict=True)
    candidates = [Candidate(text=n, log_probability=s, probability=e / total) for n, s, e in rows]
    return tuple(sorted(candidates, key=lambda candidate: -candidate.log_probability))


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise NoNumbers
    return value
