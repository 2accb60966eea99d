"""What a model says to a batch of questions; those that can't be asked are told so beside the others."""

import math
from collections.abc import Sequence

from factedit.generation import MAX_MASKS, Generation, TokenProbability, generate, next_tokens, rank
from factedit.models import LanguageModel
from factedit.prompts import answer_tokens, prompt_ids
from workers.predictor.errors import BadQuestion
from workers.predictor.questions import Answer, Candidate, Question, Token

SILENT = Generation(text="", n_tokens=0, stopped=False)


def answer_batch(
    lm: LanguageModel, questions: Sequence[Question], max_tokens: int
) -> list[Answer | BadQuestion]:
    """Answers in the questions' order; with `max_tokens` 0 nothing is generated."""
    problems = [problem_of(lm, question, max_tokens) for question in questions]
    sound = [question for question, problem in zip(questions, problems, strict=True) if problem is None]
    answers = iter(sound_answers(lm, sound, max_tokens))
    return [problem if problem is not None else next(answers) for problem in problems]


def sound_answers(lm: LanguageModel, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
    """As `answer_batch`, of questions that `problem_of` finds nothing wrong with.

    Raises:
        ArithmeticError: the weights yield no numbers for one of the prompts.
    """
    texts = [SILENT] * len(questions)
    if max_tokens and questions:
        prompts = [question.prompt for question in questions]
        texts = generate(lm, prompts, max_tokens, batch_size=len(prompts))
    tokens = iter(_next_tokens(lm, [question for question in questions if question.top_k is not None]))
    ranked = iter(_ranked(lm, [question for question in questions if question.candidates is not None]))
    return [
        Answer(
            text=text.text,
            n_tokens=text.n_tokens,
            stopped=text.stopped,
            top_k=next(tokens) if question.top_k is not None else None,
            candidates=next(ranked) if question.candidates is not None else None,
        )
        for question, text in zip(questions, texts, strict=True)
    ]


def _next_tokens(lm: LanguageModel, questions: Sequence[Question]) -> list[tuple[Token, ...]]:
    if not questions:
        return []
    counts = [question.top_k or 0 for question in questions]
    best = next_tokens(lm, [question.prompt for question in questions], max(counts))
    return [tuple(_token(found) for found in row[:count]) for row, count in zip(best, counts, strict=True)]


def _token(found: TokenProbability) -> Token:
    return Token(token=found.token, probability=_number(found.probability))


def _ranked(lm: LanguageModel, questions: Sequence[Question]) -> list[tuple[Candidate, ...]]:
    if not questions:
        return []
    names = [question.candidates or () for question in questions]
    scores = rank(lm, [question.prompt for question in questions], names)
    return [_best_first(row, score) for row, score in zip(names, scores, strict=True)]


def _best_first(names: Sequence[str], log_probabilities: Sequence[float]) -> tuple[Candidate, ...]:
    top = max(map(_number, log_probabilities))
    shares = [math.exp(score - top) for score in log_probabilities]
    total = sum(shares)
    rows = zip(names, log_probabilities, shares, strict=True)
    candidates = [Candidate(text=n, log_probability=s, probability=e / total) for n, s, e in rows]
    return tuple(sorted(candidates, key=lambda candidate: -candidate.log_probability))


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise ArithmeticError("This version's weights yield no numbers for the prompt.")
    return value


def problem_of(
    lm: LanguageModel, question: Question, max_tokens: int, ids: Sequence[int] | None = None
) -> BadQuestion | None:
    """Why a question can't be asked; `ids` are its prompt's tokens, if they are known."""
    prompt = len(prompt_ids(lm, question.prompt) if ids is None else ids)
    if prompt == 0:
        return BadQuestion("The prompt has no tokens; write some text that the model can go on from.")
    named = [len(answer_tokens(lm, question.prompt, name)) for name in question.candidates or ()]
    if 0 in named:
        return BadQuestion("A candidate has no tokens.")
    wanted = max([max_tokens if lm.task == "causal" else min(MAX_MASKS, max_tokens) + 1, *named])
    room = _context(lm)
    if prompt + wanted > room:
        return BadQuestion(
            f"The prompt's {prompt} tokens and up to {wanted} more do not fit into the {room} tokens that "
            "the model reads; shorten the prompt or lower max_tokens."
        )
    return None


def _context(lm: LanguageModel) -> int:
    """How many tokens the model reads at most, prompt and answer together."""
    config = lm.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or lm.tokenizer.model_max_length
    if lm.task == "masked":
        positions -= 2  # RoBERTa and its kin leave the first two places empty.
    return int(min(positions, lm.tokenizer.model_max_length))
