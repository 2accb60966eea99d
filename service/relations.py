"""Relations: the built-in catalogue's and the users' own, as one."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from factedit.relations import Relation, builtin_catalogue, nearest
from service.errors import Conflict, NotFound
from service.tables import RelationRow


def all_relations(s: Session) -> dict[str, Relation]:
    """Every relation by name, the built-in ones first."""
    own = {row.name: _relation(row) for row in s.scalars(select(RelationRow).order_by(RelationRow.name))}
    return {**builtin_catalogue().relations, **own}


def find(known: Mapping[str, Relation], name: str) -> Relation | None:
    """The relation of that name, or of which it is an alias; case, spaces and hyphens do not count."""
    folded = _fold(name)
    for relation in known.values():
        if folded in (_fold(relation.name), *map(_fold, relation.aliases)):
            return relation
    return None


def get(s: Session, name: str) -> Relation:
    """Raises NotFound, with the nearest names."""
    known = all_relations(s)
    relation = find(known, name)
    if relation is None:
        raise NotFound("relation", name, nearest(name, known))
    return relation


def create(s: Session, relation: Relation) -> Relation:
    """Raises Conflict: the name, or one of the aliases, is another relation's."""
    known = all_relations(s)
    for name in (relation.name, *relation.aliases):
        taken = find(known, name)
        if taken is not None:
            raise Conflict(f"{name!r} is taken by the relation {taken.name!r}.", code="relation_exists")
    row = RelationRow(
        name=relation.name,
        description=relation.description,
        aliases=list(relation.aliases),
        training_templates=list(relation.training_templates),
        evaluation_templates=list(relation.evaluation_templates),
    )
    try:
        with s.begin_nested():
            s.add(row)
    except IntegrityError as error:  # somebody else was faster
        raise Conflict(f"{relation.name!r} is taken.", code="relation_exists") from error
    return relation


def is_builtin(name: str) -> bool:
    return name in builtin_catalogue().relations


def _relation(row: RelationRow) -> Relation:
    return Relation(
        name=row.name,
        training_templates=tuple(row.training_templates),
        evaluation_templates=tuple(row.evaluation_templates),
        description=row.description,
        aliases=tuple(row.aliases),
    )


def _fold(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
