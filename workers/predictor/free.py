"""Free answers: token by token where the model can be decoded so, whole batches where it can't."""

from collections.abc import Sequence
from typing import Protocol

from factedit.decoding import Decoded, Decoder
from factedit.generation import Generation, decode, generate
from factedit.models import LanguageModel
from workers.predictor.errors import NoNumbers, PredictorError
from workers.predictor.questions import Asked


class Free(Protocol):
    """Answers a version's questions freely. Its weights must be in place at every step."""

    def join(self, asked: Asked, ids: Sequence[int]) -> None:
        """Answer it from the next step on; `ids` are its prompt's tokens."""

    def leave(self, asked: Asked) -> None:
        """Answer it no further, if it has joined."""

    def step(self) -> list[tuple[Asked, Generation | PredictorError]]:
        """Go a step further; those that are answered by now."""


class TokenByToken:
    """For causal models of the usual kind: questions join and leave between any two tokens."""

    def __init__(self, lm: LanguageModel, decoder: Decoder) -> None:
        self._lm = lm
        self._decoder = decoder
        self._asked: dict[Decoded, Asked] = {}

    def join(self, asked: Asked, ids: Sequence[int]) -> None:
        self._asked[self._decoder.join(ids, asked.max_tokens)] = asked

    def leave(self, asked: Asked) -> None:
        for sequence in [sequence for sequence, each in self._asked.items() if each is asked]:
            self._decoder.leave(sequence)
            del self._asked[sequence]

    def step(self) -> list[tuple[Asked, Generation | PredictorError]]:
        return [(self._asked.pop(sequence), self._said(sequence)) for sequence in self._decoder.step()]

    def _said(self, sequence: Decoded) -> Generation | PredictorError:
        if sequence.failed:
            return NoNumbers()
        return Generation(decode(self._lm, sequence.tokens), len(sequence.tokens), sequence.stopped)


class WholeBatches:
    """For models of which only whole answers can be had: a batch a step, of one token limit."""

    def __init__(self, lm: LanguageModel, max_batch: int = 64) -> None:
        self._lm = lm
        self._max_batch = max_batch
        self._waiting: list[Asked] = []

    def join(self, asked: Asked, ids: Sequence[int]) -> None:
        self._waiting.append(asked)

    def leave(self, asked: Asked) -> None:
        if asked in self._waiting:
            self._waiting.remove(asked)

    def step(self) -> list[tuple[Asked, Generation | PredictorError]]:
        if not self._waiting:
            return []
        limit = self._waiting[0].max_tokens
        alike = [asked for asked in self._waiting if asked.max_tokens == limit][: self._max_batch]
        self._waiting = [asked for asked in self._waiting if asked not in alike]
        prompts = [asked.question.prompt for asked in alike]
        return list(zip(alike, generate(self._lm, prompts, limit, self._max_batch), strict=True))
