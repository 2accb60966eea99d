"""Which evaluation wordings the library might have trained on: those are no exam, and are not counted."""

import re

from benchmarks.data import Row
from benchmarks.wording_overlap import normalised
from factedit.recognition import wordings_for
from factedit.rephrasing import rephrased
from factedit.restating import restated


def in_unseen_words(row: Row) -> bool:
    """Whether no wording that the row's edit may be trained in holds its paraphrase."""
    edit = row.edit
    trained = [
        row.prompt,
        *rephrased(row.prompt, edit.subject),
        *(wordings_for(row.prompt, edit.subject, edit.new_object) or restated(row.prompt, edit.subject)),
    ]
    tested = _plain(row.paraphrase, edit.subject)
    return not any(tested in _plain(text, edit.subject) for text in trained)


def _plain(text: str, subject: str) -> str:
    """Normalised, without an article before the subject."""
    return normalised(re.sub(rf"\bthe\s+(?={re.escape(subject)})", "", text, flags=re.IGNORECASE))
