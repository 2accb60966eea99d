"""Edits that seem to ask the same of one subject in other words, and want another answer.

They need not contradict each other: a city has many twin cities. So nobody is refused or superseded for it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from factedit.answers import normalise
from factedit.facts import Edit
from factedit.recognition import recognise
from factedit.relations import Relation
from factedit.wording import edit_prompt

MOST = 16
"""Rivals that are named of one edit: enough to see what is wrong."""

_Asked = dict[str, dict[str, list[Edit]]]
"""Edits of one subject by what they ask for and which object they want."""


def rivals(edits: Iterable[Edit], relations: Mapping[str, Relation]) -> dict[Edit, list[Edit]]:
    """By edit, the first `MOST` others of its subject that seem to ask the same and want another object.

    Edits without any, and those that erase, are left out.

    Raises:
        NoWords: an edit with neither a prompt nor a known relation.
    """
    by_subject: dict[str, list[Edit]] = {}
    for edit in edits:
        if not edit.erase:
            by_subject.setdefault(edit.subject.casefold(), []).append(edit)
    several = (mine for mine in by_subject.values() if len(mine) > 1)
    return {edit: others for mine in several for edit, others in _of_one_subject(mine, relations) if others}


def _of_one_subject(
    mine: Sequence[Edit], relations: Mapping[str, Relation]
) -> Iterator[tuple[Edit, list[Edit]]]:
    asks = {edit: _asks(edit, relations) for edit in mine}
    asked: _Asked = {}
    for edit, what in asks.items():
        for each in what:
            asked.setdefault(each, {}).setdefault(normalise(edit.new_object), []).append(edit)
    for edit, what in asks.items():
        yield edit, list(dict.fromkeys(islice(_others(edit, what, asked), MOST)))


def _others(edit: Edit, what: Iterable[str], asked: _Asked) -> Iterator[Edit]:
    """However many want the same object, only those that want another are gone through."""
    for each in what:
        for wanted, who in asked[each].items():
            if wanted != normalise(edit.new_object):
                yield from who


def _asks(edit: Edit, relations: Mapping[str, Relation]) -> list[str]:
    """What the edit asks for: the family of wordings that it is recognised by, and its relation."""
    seen = recognise(edit_prompt(edit, relations), edit.subject, edit.new_object)
    named = relations.get(edit.relation or "")
    names = [*([] if seen is None else [seen.name]), *([] if named is None else [named.name])]
    return list(dict.fromkeys(names))
