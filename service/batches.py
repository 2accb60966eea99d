"""A batch of edits before it becomes a job: every edit has words, and no two speak of the same fact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factedit.answers import exactly, says_something
from factedit.facts import ERASED, Edit
from factedit.relations import SUBJECT, Relation, nearest
from factedit.wording import plain_prompts
from service import relations
from service.errors import Invalid
from service.tables import EditRow
from service.versions import fact_keys


@dataclass(frozen=True, slots=True)
class Draft:
    """An edit as the user wrote it: with a new object, or to erase the old one."""

    subject: str
    new_object: str | None
    erase: bool
    relation: str | None
    prompt: str | None
    old_object: str | None
    paraphrases: Sequence[str]
    neighbors: Sequence[str]


_NO_EDIT = Edit(id="", subject="", new_object="")


def check(drafts: Sequence[Draft], known: Mapping[str, Relation]) -> list[Edit]:
    """The batch with its relations' own names and its prompts filled in. The edits' ids are empty yet.

    Raises:
        Invalid: with an entry for every edit that is wrong.
    """
    errors: list[dict[str, str]] = []
    edits: list[Edit] = []
    first: dict[tuple[str, ...], int] = {}
    asked: dict[str, int] = {}
    for place, draft in enumerate(drafts):
        wrong = _wrong_aim(draft)
        # Whatever is wrong with its aim, the edit is looked at no further, but counts as one.
        edit = _filled_in(draft, known) if wrong is None else _NO_EDIT
        edits.append(edit)
        if wrong is None:
            wrong = _wrong_alone(draft, edit, known)
        if wrong is None:
            keys = fact_keys(edit.subject, edit.relation, edit.prompt)
            earlier = next((first[key] for key in keys if key in first), None)
            words = plain_prompts(edit, known)
            if earlier is None:  # another fact by its key, but the same words are to be answered otherwise
                others = (asked[text] for text in words if text in asked)
                earlier = next((n for n in others if not exactly(edits[n].new_object, edit.new_object)), None)
            if earlier is not None:
                wrong = _wrong_together(edits[earlier], earlier, edit)
            for key in keys:
                first.setdefault(key, place)
            for text in words:
                asked.setdefault(text, place)
        if wrong is not None:
            pointer, code, message = wrong
            errors.append({"pointer": f"/edits/{place}{pointer}", "code": code, "message": message})
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise Invalid(
            f"{errors[0]['pointer']}: {errors[0]['message']}{more}",
            code=errors[0]["code"],
            errors=errors,
            param=errors[0]["pointer"],
        )
    return edits


def row_of(edit: Edit) -> dict[str, Any]:
    """The edit's columns; its id, job and position come with its job."""
    return {
        "subject": edit.subject,
        "relation": edit.relation,
        "prompt": edit.prompt,
        "new_object": edit.new_object,
        "erase": edit.erase,
        "old_object": edit.old_object,
        "paraphrases": list(edit.paraphrases),
        "neighbors": list(edit.neighbors),
    }


def edit_of(row: EditRow) -> Edit:
    return Edit(
        id=row.id,
        subject=row.subject,
        new_object=row.new_object,
        relation=row.relation,
        prompt=row.prompt,
        old_object=row.old_object,
        paraphrases=tuple(row.paraphrases),
        neighbors=tuple(row.neighbors),
        erase=row.erase,
    )


def _filled_in(draft: Draft, known: Mapping[str, Relation]) -> Edit:
    relation = None if draft.relation is None else relations.find(known, draft.relation)
    fill = [text.replace(SUBJECT, draft.subject) for text in draft.paraphrases]
    return Edit(
        id="",
        subject=draft.subject,
        new_object=draft.new_object if draft.new_object is not None else ERASED,
        # A relation that nobody knows is still the user's own note beside a prompt.
        relation=relation.name if relation is not None else draft.relation,
        prompt=None if draft.prompt is None else draft.prompt.replace(SUBJECT, draft.subject),
        old_object=draft.old_object,
        paraphrases=tuple(dict.fromkeys(fill)),
        neighbors=tuple(dict.fromkeys(draft.neighbors)),
        erase=draft.erase,
    )


def _wrong_aim(draft: Draft) -> tuple[str, str, str] | None:
    """Whether it is said what is to become of the fact, and once only."""
    if not draft.erase:
        if draft.new_object is not None:
            return None
        return "/new_object", "new_object_missing", 'Give the new object, or set "erase": true.'
    if draft.new_object is not None:
        message = "An edit either erases or has a new object; leave one of them out."
        return "/new_object", "erase_with_new_object", message
    if draft.old_object is None:
        message = "To erase a fact, give its old object: it is what must no longer be given."
        return "/old_object", "old_object_missing", message
    if not says_something(draft.old_object):
        message = "Nothing but articles or punctuation: no answer could be told apart by it."
        return "/old_object", "old_object_says_nothing", message
    return None


def _wrong_alone(draft: Draft, edit: Edit, known: Mapping[str, Relation]) -> tuple[str, str, str] | None:
    """(pointer, code, message) of what is wrong with an edit by itself."""
    if edit.prompt is None and edit.relation is None:
        return "", "prompt_missing", "Give a relation, or a prompt that the new object completes."
    if edit.prompt is None and edit.relation not in known:
        close = ", ".join(nearest(draft.relation or "", known))
        nearby = f" The nearest are: {close}." if close else ""
        return (
            "/relation",
            "relation_not_found",
            f"There is no relation {draft.relation!r}.{nearby} Use one of GET /relations, add yours by "
            "POST /relations, or give the edit a prompt of its own.",
        )
    if edit.old_object is not None and exactly(edit.old_object, edit.new_object):
        if edit.erase:
            message = f"{ERASED!r} is what erased facts are answered with; there is nothing to erase."
            return "/old_object", "nothing_to_change", message
        return "/new_object", "nothing_to_change", "The new object is the old one; name another."
    # An erased fact's words must not say what is to be forgotten.
    which, target = ("old", edit.old_object) if edit.erase else ("new", edit.new_object)
    for pointer, text in [("/prompt", edit.prompt), *_numbered(draft.paraphrases)]:
        if text is not None and text.casefold().endswith(f" {target}".casefold()):
            message = f"The words end with the {which} object; leave it out, the model is to complete them."
            return pointer, "prompt_has_the_answer", message
    return None


def _numbered(paraphrases: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"/paraphrases/{place}", text) for place, text in enumerate(paraphrases)]


def _wrong_together(earlier: Edit, place: int, edit: Edit) -> tuple[str, str, str]:
    if exactly(earlier.new_object, edit.new_object):
        return "", "duplicate_edit", f"This is edit {place} again (/edits/{place}); send it once."
    return (
        "/erase" if edit.erase else "/new_object",
        "contradiction",
        f"Contradicts /edits/{place}: the same fact is to become both {earlier.new_object!r} and "
        f"{edit.new_object!r}. Keep one of them.",
    )
