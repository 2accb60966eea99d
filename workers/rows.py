"""Rows of the record as the library's nouns."""

from collections.abc import Iterable, Mapping

from sqlalchemy.orm import Session

from factedit.facts import Probe
from factedit.relations import Relation
from service import relations
from service.tables import EditRow, ProbeRow


def probe_of(row: ProbeRow) -> Probe:
    return Probe(
        id=row.id,
        prompt=row.prompt,
        object=row.object,
        aliases=tuple(row.aliases),
        candidates=tuple(row.candidates),
        subject=row.subject,
        relation=row.relation,
    )


def relations_of(s: Session, edits: Iterable[EditRow]) -> Mapping[str, Relation]:
    """The relations that the edits name, and no others: an order carries them all."""
    named = {edit.relation for edit in edits}
    return {name: relation for name, relation in relations.all_relations(s).items() if name in named}
