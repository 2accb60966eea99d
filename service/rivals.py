"""Edits that seem to ask the same of one subject in other words, and want another answer.

They need not contradict each other: a city has many twin cities. So nobody is refused or superseded for it.
"""

from collections.abc import Iterable, Mapping

from factedit.answers import exactly
from factedit.facts import Edit
from factedit.recognition import recognise
from factedit.relations import Relation
from factedit.wording import edit_prompt


def rivals(edits: Iterable[Edit], relations: Mapping[str, Relation]) -> dict[Edit, list[Edit]]:
    """By edit, the others of its subject that are recognised to ask the same and want another object.

    Edits without any, and those that erase, are left out.

    Raises:
        NoWords: an edit with neither a prompt nor a known relation.
    """
    by_subject: dict[str, list[Edit]] = {}
    for edit in edits:
        if not edit.erase:
            by_subject.setdefault(edit.subject.casefold(), []).append(edit)
    found: dict[Edit, list[Edit]] = {}
    for mine in by_subject.values():
        if len(mine) > 1:
            asks = [_asks(edit, relations) for edit in mine]
            for edit, asked in zip(mine, asks, strict=True):
                same = [other for other, also in zip(mine, asks, strict=True) if asked & also]
                if others := [o for o in same if not exactly(o.new_object, edit.new_object)]:
                    found[edit] = others
    return found


def _asks(edit: Edit, relations: Mapping[str, Relation]) -> set[str]:
    """What the edit asks for: the family of wordings that it is recognised by, and its relation."""
    seen = recognise(edit_prompt(edit, relations), edit.subject, edit.new_object)
    found = set() if seen is None else {seen.name}
    return found | ({edit.relation} if edit.relation is not None and edit.relation in relations else set())
