"""Questions put to a predictor's session until all of them are answered."""

from collections.abc import Sequence

from factedit.decoding import Decoder, can_decode
from factedit.models import LanguageModel
from workers.predictor.errors import PredictorError
from workers.predictor.free import TokenByToken, WholeBatches
from workers.predictor.questions import Answer, Asked, Question
from workers.predictor.session import Session


def session_of(lm: LanguageModel, *, max_rows: int = 64) -> Session:
    by_token = can_decode(lm)
    free = TokenByToken(lm, Decoder(lm, max_rows=max_rows)) if by_token else WholeBatches(lm, max_rows)
    return Session(lm, free)


def answered(
    lm: LanguageModel, questions: Sequence[Question], max_tokens: int
) -> list[Answer | PredictorError]:
    """What a session of their own answers to them, in their order."""
    asked = [Asked(question, max_tokens) for question in questions]
    session = session_of(lm)
    found = dict(session.turn(asked, ()))
    while len(found) < len(asked):
        found |= session.turn((), ())
    return [found[each] for each in asked]
