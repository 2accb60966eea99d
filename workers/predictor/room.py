"""How much may be under way or wait: prompts, and the sequences that ranking reads for them."""

import math
from collections.abc import Sequence

from workers.predictor.errors import BadQuestion, Overloaded
from workers.predictor.questions import Question


class Room:
    """What requests that are not yet answered take up. A candidate after a prompt is one sequence."""

    def __init__(self, *, prompts: int, ranked: int) -> None:
        self._most_prompts, self._most_ranked = prompts, ranked
        self._prompts = self._ranked = 0

    def enter(self, questions: Sequence[Question], seconds_each: float) -> None:
        """Raises BadQuestion: it would never fit; Overloaded: not now. A prompt takes `seconds_each`."""
        prompts, ranked = len(questions), _sequences(questions)
        if prompts > self._most_prompts:
            raise BadQuestion(
                f"{prompts} prompts are too many for one request; send at most {self._most_prompts}."
            )
        if ranked > self._most_ranked:
            raise BadQuestion(
                f"{ranked} candidates, all prompts together, are too many for one request; "
                f"send at most {self._most_ranked}."
            )
        if self._prompts + prompts > self._most_prompts or self._ranked + ranked > self._most_ranked:
            seconds = min(60, max(1, math.ceil(self._prompts * seconds_each)))
            raise Overloaded("Too many prompts are waiting; ask again later.", retry_after=seconds)
        self._prompts += prompts
        self._ranked += ranked

    def leave(self, questions: Sequence[Question]) -> None:
        self._prompts -= len(questions)
        self._ranked -= _sequences(questions)


def _sequences(questions: Sequence[Question]) -> int:
    return sum(len(question.candidates or ()) for question in questions)
