"""One version's questions under way: which answers are whole after one more step of the model.

A turn takes one step of free text and reads one slice of what else is asked, so that questions join and
leave in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from factedit.generation import Generation
from factedit.models import LanguageModel
from factedit.prompts import names_tokens, prompt_ids
from workers.predictor.besides import SLICE, SMALL_SLICE, Besides, Reader
from workers.predictor.checks import problem_of
from workers.predictor.errors import PredictorError
from workers.predictor.free import Free
from workers.predictor.questions import Answer, Asked

Result = tuple[Asked, Answer | PredictorError]

SILENT = Generation(text="", n_tokens=0, stopped=False)


@dataclass(slots=True)
class _Parts:
    """An answer's two halves, as far as they are there."""

    text: Generation | None
    besides: Besides | None


class Session:
    """The version's weights must be in place at every turn."""

    def __init__(self, lm: LanguageModel, free: Free) -> None:
        self._lm = lm
        self._free = free
        self._reader = Reader(lm)
        self._under_way: dict[Asked, _Parts] = {}

    def turn(self, joining: Sequence[Asked], leaving: Sequence[Asked]) -> list[Result]:
        """Those that are answered, or can't be."""
        for asked in leaving:
            self._drop(asked)
        failed: list[Result] = [(asked, error) for asked in joining if (error := self._join(asked))]
        for asked, text in self._free.step():
            if isinstance(text, PredictorError):
                failed.append((asked, text))
                self._drop(asked)
            else:
                self._under_way[asked].text = text
        writing = any(parts.text is None for parts in self._under_way.values())
        for asked, besides in self._reader.step(SMALL_SLICE if writing else SLICE):
            if isinstance(besides, PredictorError):
                failed.append((asked, besides))
                self._drop(asked)
            else:
                self._under_way[asked].besides = besides
        return [*failed, *self._answered()]

    def _join(self, asked: Asked) -> PredictorError | None:
        question = asked.question
        ids = prompt_ids(self._lm, question.prompt)
        named = names_tokens(self._lm, question.prompt, question.candidates or ())
        problem = problem_of(self._lm, ids, named, asked.max_tokens)
        if problem is not None:
            return problem
        parts = self._under_way[asked] = _Parts(SILENT, Besides())
        if asked.max_tokens:
            parts.text = None
            self._free.join(asked, ids)
        if question.top_k is not None or named:
            parts.besides = None
            self._reader.join(asked, ids, named)
        return None

    def _drop(self, asked: Asked) -> None:
        del self._under_way[asked]
        self._free.leave(asked)
        self._reader.leave(asked)

    def _answered(self) -> list[Result]:
        whole: list[Result] = []
        for asked, parts in self._under_way.items():
            text, besides = parts.text, parts.besides
            if text is not None and besides is not None:
                answer = Answer(text.text, text.n_tokens, text.stopped, besides.top_k, besides.candidates)
                whole.append((asked, answer))
        for asked, _ in whole:
            del self._under_way[asked]
        return whole
