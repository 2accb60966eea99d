"""One version's questions under way: which answers are whole after one more step of the model.

Free answers are decoded token by token together (factedit.decoding), so that questions join and leave
between any two tokens. Candidates and likely next tokens take one pass when a question joins. Models
that can't be decoded so answer whole batches, of one token limit each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from factedit.decoding import Decoded, Decoder
from factedit.generation import decode
from factedit.models import LanguageModel
from factedit.prompts import prompt_ids
from workers.predictor.answers import answer_batch, problem_of, sound_answers
from workers.predictor.errors import PredictorError
from workers.predictor.questions import Answer, Asked

Result = tuple[Asked, Answer | PredictorError]

NO_NUMBERS = "This version's weights yield no numbers for the prompt."


class WholeBatches:
    """For models of which only whole answers can be had."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def turn(self, joining: Sequence[Asked], leaving: Sequence[Asked]) -> list[Result]:
        results: list[Result] = []
        for limit in dict.fromkeys(asked.max_tokens for asked in joining):
            alike = [asked for asked in joining if asked.max_tokens == limit]
            answers = answer_batch(self._lm, [asked.question for asked in alike], limit)
            results += zip(alike, answers, strict=True)
        return results


class TokenByToken:
    """For causal models of the usual kind. The version's weights must be in place at every turn."""

    def __init__(self, lm: LanguageModel, decoder: Decoder) -> None:
        self._lm = lm
        self._decoder = decoder
        self._under_way: dict[Decoded, tuple[Asked, Answer]] = {}

    def turn(self, joining: Sequence[Asked], leaving: Sequence[Asked]) -> list[Result]:
        gone = set(leaving)
        for sequence in [s for s, (asked, _) in self._under_way.items() if asked in gone]:
            self._decoder.leave(sequence)
            del self._under_way[sequence]
        results = self._join(joining)
        return [*results, *self._answered(self._decoder.step())]

    def _join(self, joining: Sequence[Asked]) -> list[Result]:
        """Those that are answered already: they can't be asked, or nothing is to be generated."""
        results: list[Result] = []
        sound: list[tuple[Asked, list[int]]] = []
        for asked in joining:
            ids = prompt_ids(self._lm, asked.question.prompt)
            problem = problem_of(self._lm, asked.question, asked.max_tokens, ids)
            if problem is not None:
                results.append((asked, problem))
            else:
                sound.append((asked, ids))
        besides = sound_answers(self._lm, [asked.question for asked, _ in sound], 0)
        for (asked, ids), answer in zip(sound, besides, strict=True):
            if asked.max_tokens:
                self._under_way[self._decoder.join(ids, asked.max_tokens)] = asked, answer
            else:
                results.append((asked, answer))
        return results

    def _answered(self, sequences: Sequence[Decoded]) -> Iterator[Result]:
        for sequence in sequences:
            asked, besides = self._under_way.pop(sequence)
            if sequence.failed:
                yield asked, PredictorError(NO_NUMBERS)
                continue
            text = decode(self._lm, sequence.tokens)
            yield (
                asked,
                replace(besides, text=text, n_tokens=len(sequence.tokens), stopped=sequence.stopped),
            )


Session = WholeBatches | TokenByToken
