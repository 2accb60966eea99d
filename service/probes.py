"""Probes and what versions answer to them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.errors import Conflict
from service.ids import new_id
from service.paging import Page, page
from service.tables import Model, ProbeOutcomeRow, ProbeRow


def create(s: Session, model: Model, source: str, probes: Iterable[Mapping[str, Any]]) -> list[ProbeRow]:
    """Add probes to a model.

    Raises:
        Conflict: a probe of the same prompt and object is there already.
    """
    rows = [ProbeRow(id=new_id("prb"), model_id=model.id, source=source, **probe) for probe in probes]
    asked = select(ProbeRow.prompt, ProbeRow.object).where(ProbeRow.model_id == model.id)
    taken = {(prompt, target) for prompt, target in s.execute(asked)}
    for position, row in enumerate(rows):
        if (row.prompt, row.object) in taken:
            raise Conflict(
                f"The probe {row.prompt!r} → {row.object!r} is there already.",
                code="probe_exists",
                pointer=f"/probes/{position}",
            )
        taken.add((row.prompt, row.object))
    try:
        with s.begin_nested():
            s.add_all(rows)
    except IntegrityError as error:  # somebody else was faster
        raise Conflict("One of the probes is there already.", code="probe_exists") from error
    return rows


def list_probes(
    s: Session, model: Model, source: str | None = None, after: str | None = None, limit: int = 20
) -> Page[ProbeRow]:
    query = select(ProbeRow).where(ProbeRow.model_id == model.id)
    if source is not None:
        query = query.where(ProbeRow.source == source)
    return page(s, query, ProbeRow.id, after, limit)


def of_model(s: Session, model_id: str) -> list[ProbeRow]:
    """All of a model's probes, in order of id."""
    return list(s.scalars(select(ProbeRow).where(ProbeRow.model_id == model_id).order_by(ProbeRow.id)))


def outcomes(s: Session, version_id: str) -> dict[str, ProbeOutcomeRow]:
    """What a version answered, by probe, as far as it has been asked."""
    rows = s.scalars(select(ProbeOutcomeRow).where(ProbeOutcomeRow.version_id == version_id))
    return {row.probe_id: row for row in rows}


def store_outcomes(s: Session, version_id: str, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Keep what a version answered: probe_id, answer, answer_right, ranked_first. Repeats are ignored."""
    if outcomes:
        rows = [{"version_id": version_id, **outcome} for outcome in outcomes]
        s.execute(insert(ProbeOutcomeRow).on_conflict_do_nothing(), rows)
