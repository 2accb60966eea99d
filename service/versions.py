"""Versions: publishing a candidate, its ledger, quarantine, and reading a model reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from factedit.facts import Edit
from service import jobs, leases, models
from service.errors import Invalid, NotFound
from service.ids import is_id
from service.leases import Claim
from service.paging import Page, page
from service.tables import PRODUCTION, Alias, AliasMove, EditRow, Json, LedgerEntry, Model, Version


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an edit stage brings: all of it is durable in the store before it comes here."""

    version_id: str
    overlay_digest: str
    overlay_bytes: int
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Any]
    ledger_edit_ids: Sequence[str]


def publish_candidate(s: Session, claim: Claim, candidate: Candidate) -> Version | None:
    """Record a candidate with its ledger and hand its job to scoring; None if the claim is lost."""
    if leases.held(s, claim) is None:
        return None
    version = Version(
        id=candidate.version_id,
        model_id=claim.model_id,
        parent_id=claim.base_version_id,
        job_id=claim.job_id,
        overlay_digest=candidate.overlay_digest,
        overlay_bytes=candidate.overlay_bytes,
        state="candidate",
        manifest=dict(candidate.manifest),
        metrics=dict(candidate.metrics),
    )
    s.add(version)
    s.flush()
    s.add_all(LedgerEntry(version_id=version.id, edit_id=edit_id) for edit_id in candidate.ledger_edit_ids)
    leases.hand_to_scoring(s, claim, version.id)
    return version


ROOT = "root"
"""Names a model's root version wherever a version or an alias is named; no alias may be called so."""


def get(s: Session, model: Model, version_id: str) -> Version:
    """The version of that id, or the root. Raises NotFound: no such version of this model."""
    version = s.get(Version, model.root_version_id if version_id == ROOT else version_id)
    if version is None or version.model_id != model.id:
        raise NotFound("version", version_id)
    return version


def list_versions(s: Session, model: Model, after: str | None = None, limit: int = 20) -> Page[Version]:
    """A model's versions, newest first."""
    query = select(Version).where(Version.model_id == model.id)
    return page(s, query, Version.id, after, limit, newest_first=True)


def resolve(s: Session, reference: str, field: str = "model") -> tuple[Model, Version]:
    """The model and version that `m`, `m@alias`, `m@root` or `m@ver_…` names; `m` alone is production.

    Raises:
        NotFound: never another version in its place. Invalid: an empty part, in the body's `field`.
    """
    name, at, place = reference.partition("@")
    if not name or (at and not place):
        wanted = "Name a model as 'm', 'm@alias', 'm@root' or 'm@ver_…'."
        raise Invalid(wanted, pointer=f"/{field}", param=field)
    model = models.get(s, name)
    if place == ROOT or is_id(place, "ver"):
        return model, get(s, model, place)
    alias = s.get(Alias, (model.id, place or PRODUCTION))
    if alias is None:
        known = s.scalars(select(Alias.name).where(Alias.model_id == model.id).order_by(Alias.name))
        raise NotFound("alias", place, known)
    return model, s.get_one(Version, alias.version_id)


def quarantine(s: Session, version_id: str) -> None:
    """The version's bytes no longer match their digest: nothing serves it until `lift_quarantine`."""
    version = s.get_one(Version, version_id, with_for_update=True)
    version.state = "quarantined"


def quarantine_digest(s: Session, digest: str) -> list[str]:
    """Quarantine every version that is made of the object `digest`, an overlay or a root; their ids."""
    damaged = (
        select(Version.id)
        .join(Model, Model.id == Version.model_id)
        .where(
            (Version.overlay_digest == digest)
            | (Version.overlay_digest.is_(None) & (Model.root_digest == digest))
        )
    )
    found = list(s.scalars(damaged))
    for version_id in found:
        quarantine(s, version_id)
    return found


def lift_quarantine(s: Session, version_id: str) -> Version:
    """The version's bytes are whole again, which the caller has seen: it is again what it was.

    What that is, the record tells: its job may have ended and production may have moved meanwhile.
    """
    version = s.get_one(Version, version_id)
    # Locked in the order in which a promotion locks them.
    job = None if version.job_id is None else jobs.get(s, version.job_id, lock=True)
    production = s.get_one(Alias, (version.model_id, PRODUCTION), with_for_update=True)
    s.refresh(version, with_for_update=True)
    if version.state != "quarantined":
        return version
    if production.version_id == version.id:
        version.state = "production"
    elif was_in_production(s, version.model_id, version.id):
        version.state = "superseded"
    elif job is not None and job.status in ("failed", "cancelled"):
        version.state = "refused"
    else:
        version.state = "candidate"
    return version


def was_in_production(s: Session, model_id: str, version_id: str) -> bool:
    """Whether it is or ever was."""
    moves = select(AliasMove.id).where(
        AliasMove.model_id == model_id,
        AliasMove.alias == PRODUCTION,
        AliasMove.to_version_id == version_id,
    )
    return s.scalar(moves.limit(1)) is not None


def ledger(s: Session, version_id: str, subject: str | None = None) -> list[EditRow]:
    """The edits in force in a version, oldest first; of one subject if asked (case does not count)."""
    query = (
        select(EditRow)
        .join(LedgerEntry, LedgerEntry.edit_id == EditRow.id)
        .where(LedgerEntry.version_id == version_id)
        .order_by(EditRow.id)
    )
    rows = s.scalars(query)
    return [row for row in rows if subject is None or row.subject.casefold() == subject.casefold()]


def next_ledger(
    s: Session, base_version_id: str, new_edits: Sequence[EditRow | Edit]
) -> tuple[list[EditRow], list[EditRow]]:
    """(kept, superseded): what the base's ledger becomes under `new_edits`.

    A new edit supersedes an earlier one of the same subject and relation, or of the same prompt.
    """
    keys = {key for edit in new_edits for key in keys_of(edit)}
    kept: list[EditRow] = []
    superseded: list[EditRow] = []
    for row in ledger(s, base_version_id):
        (superseded if keys & keys_of(row) else kept).append(row)
    return kept, superseded


def supersedes(superseded: Sequence[EditRow], new_edits: Sequence[EditRow | Edit]) -> list[Json]:
    """What the API tells of earlier edits in force that new ones replace: which, and by what."""
    by_key: dict[tuple[str, ...], EditRow | Edit] = {}
    for edit in new_edits:
        for key in keys_of(edit):
            by_key.setdefault(key, edit)
    return [
        {
            "edit_id": row.id,
            "job_id": row.job_id,
            "subject": row.subject,
            "relation": row.relation,
            "prompt": row.prompt,
            "old": row.new_object,
            "new": next(by_key[key].new_object for key in sorted(keys_of(row)) if key in by_key),
        }
        for row in superseded
    ]


def keys_of(edit: EditRow | Edit) -> set[tuple[str, ...]]:
    return fact_keys(edit.subject, edit.relation, edit.prompt)


def fact_keys(subject: str, relation: str | None, prompt: str | None) -> set[tuple[str, ...]]:
    """What an edit is about: two edits that share a key speak of the same fact."""
    keys: set[tuple[str, ...]] = set()
    if relation is not None:
        keys.add(("fact", subject.casefold(), relation))
    if prompt is not None:
        keys.add(("prompt", prompt))
    return keys
