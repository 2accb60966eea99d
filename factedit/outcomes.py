"""What a version answered, as it is scored (factedit.scoring). No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What a version answers to a probe.

    `ranked_first`: the true object is the most probable of the candidates; None without candidates.
    """

    probe_id: str
    answer: str
    answer_right: bool
    ranked_first: bool | None

    @property
    def known(self) -> bool:
        return self.answer_right or bool(self.ranked_first)


@dataclass(frozen=True, slots=True)
class PromptOutcome:
    """What a version answers to one prompt of an edit.

    `old_ranked_first`: of an erased fact, whether its old object is still the most probable of its
    relation's candidates; None where there are none, and of every other edit.
    """

    prompt: str
    answer: str
    right: bool
    old_ranked_first: bool | None = None


@dataclass(frozen=True, slots=True)
class EditOutcome:
    """What a version answers to an edit, and to words for it that were never trained on."""

    edit_id: str
    prompt: str
    answer: str
    right: bool
    stopped: bool
    teacher_forced: bool
    paraphrases: tuple[PromptOutcome, ...]
    old_ranked_first: bool | None = None
