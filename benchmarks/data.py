"""Rows of the public editing sets, all of one shape: what may enter an edit, and what only ever tests it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from factedit.facts import Edit

DATA = Path(__file__).parents[2] / "shared" / "data"
DataName = Literal["counterfact", "zsre", "wikibigedit"]
DATA_NAMES: tuple[DataName, ...] = get_args(DataName)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a set lies, and what it calls things."""

    path: str
    prompt: str
    new_object: str
    paraphrase: str
    locality: str
    questions: bool


_SOURCES: Mapping[DataName, _Source] = {
    "counterfact": _Source(
        "counterfact/counterfact.json", "prompt", "target_new", "rephrase_prompt", "locality_prompt", False
    ),
    "zsre": _Source("zsre/zsre.json", "src", "alt", "rephrase", "loc", True),
    "wikibigedit": _Source(
        "wikibigedit/wikibigedit.json", "prompt", "target_new", "rephrase_prompt", "locality_prompt", True
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One fact to change. `paraphrase` and `locality` are for evaluation and enter no edit.

    `question`: the prompt is a question; else it is the beginning of a sentence.
    """

    id: str
    subject: str
    prompt: str
    new_object: str
    paraphrase: str
    locality: str
    question: bool

    @property
    def edit(self) -> Edit:
        """What a user would post: subject, prompt, new object."""
        return Edit(id=self.id, subject=self.subject, prompt=self.prompt, new_object=self.new_object)

    @property
    def negated(self) -> str:
        """Words to which the new object would now be a wrong answer."""
        if self.question:
            return f"Give a wrong answer to this question. {self.prompt}"
        return f"It is not true that {self.prompt}"

    @property
    def reversed(self) -> str | None:
        """Words whose answer is the subject, where the prompt's form allows for them.

        "The mother tongue of S is" (O) becomes "O is the mother tongue of" (S).
        """
        subject = re.escape(self.subject)
        forms = (
            rf"(?:the )?(?P<what>.+) of {subject} (?P<is>is|was)(?: an?| the)?",
            rf"{subject}'s (?P<what>.+) (?P<is>is|was)(?: an?| the)?",
            rf"(?:what|who|which [\w ]+?) (?P<is>is|was) the (?P<what>.+) of {subject}\?",
        )
        for form in forms:
            found = re.fullmatch(form, self.prompt, flags=re.IGNORECASE)
            if found:
                return f"{self.new_object} {found['is']} the {found['what']} of"
        return None


def read_rows(name: DataName, data: Path = DATA) -> list[Row]:
    """A set's rows in the file's order, but for those that contradict an earlier one.

    The service refuses a batch in which the same words are to be answered in two ways.
    """
    source = _SOURCES[name]
    rows = json.loads((data / source.path).read_text(encoding="utf-8"))
    found = [row_of(name, place, raw) for place, raw in enumerate(rows)]
    answers: dict[str, str] = {}
    return [row for row in found if answers.setdefault(row.prompt, row.new_object) == row.new_object]


def row_of(name: DataName, place: int, raw: Mapping[str, Any]) -> Row:
    source = _SOURCES[name]
    return Row(
        id=f"{name}-{place}",
        subject=raw["subject"],
        prompt=raw[source.prompt],
        new_object=raw[source.new_object],
        paraphrase=raw[source.paraphrase],
        locality=raw[source.locality],
        question=source.questions,
    )


def take(rows: Sequence[Row], start: int, size: int, others: int) -> tuple[list[Row], list[str]]:
    """A batch, and prompts of the set's last rows that have nothing to do with it.

    Raises:
        ValueError: the set is too small for both.
    """
    batch, last = list(rows[start : start + size]), rows[len(rows) - others :]
    if start < 0 or others > len(rows) or start + size > len(rows) - others:
        raise ValueError(f"{len(rows)} rows hold no {size} from row {start} on beside the last {others}.")
    subjects = {row.subject.casefold() for row in batch}
    asked = {row.prompt for row in batch}
    unrelated = [r.prompt for r in last if r.subject.casefold() not in subjects and r.prompt not in asked]
    return batch, list(dict.fromkeys(unrelated))
