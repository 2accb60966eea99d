"""Which evaluation wordings the library might have trained on: those are no exam, and are not counted."""

from benchmarks.data import Row
from benchmarks.wording_overlap import normalised
from factedit.recognition import wordings_for
from factedit.rephrasing import rephrased


def in_unseen_words(row: Row) -> bool:
    """Whether no wording that the row's edit may be trained in holds its paraphrase."""
    edit = row.edit
    trained = [
        row.prompt,
        *rephrased(row.prompt, edit.subject),
        *wordings_for(row.prompt, edit.subject, edit.new_object),
    ]
    tested = normalised(row.paraphrase)
    return not any(tested in normalised(text) for text in trained)
