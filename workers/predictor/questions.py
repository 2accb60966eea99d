"""What is asked of a version and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """A version's weights, by content: a root, and the overlay that lies over it (None: the root itself)."""

    root_digest: str
    overlay_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, and what is wanted besides free generation."""

    prompt: str
    top_k: int | None = None
    candidates: tuple[str, ...] | None = None


@dataclass(eq=False, slots=True)
class Asked:
    """A question that is being answered, with at most `max_tokens` tokens; it is itself and no other."""

    question: Question
    max_tokens: int

    @property
    def ranks(self) -> bool:
        return self.question.candidates is not None


@dataclass(frozen=True, slots=True)
class Token:
    token: str
    probability: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """`log_probability` is natural and of all its tokens; `probability` is among the candidates."""

    text: str
    log_probability: float
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy text; the most probable next tokens and the candidates, best first, where asked for."""

    text: str
    n_tokens: int
    stopped: bool
    top_k: tuple[Token, ...] | None = None
    candidates: tuple[Candidate, ...] | None = None
