"""Aliases, the only things that move: promotion, rollback, setting, and their history.

Every move bumps the alias's generation under its row lock and writes one line of history in the
same transaction; the versions' states follow `production` in it too.
"""

from typing import Literal

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from factedit.specs import GateSpec
from service import events, jobs, leases, reports, versions
from service.errors import Conflict, Invalid, NotFound, PreconditionFailed
from service.ids import is_id
from service.leases import Claim
from service.paging import Page, page
from service.tables import PRODUCTION, Alias, AliasMove, Job, Model, Version

MoveKind = Literal["create", "promote", "rollback", "set", "delete"]


def get(s: Session, model: Model, name: str, *, lock: bool = False) -> Alias:
    """Raises NotFound."""
    alias = s.get(Alias, (model.id, name), with_for_update=lock or None, populate_existing=lock)
    if alias is None:
        raise NotFound("alias", name, (a.name for a in list_aliases(s, model)))
    return alias


def list_aliases(s: Session, model: Model) -> list[Alias]:
    return list(s.scalars(select(Alias).where(Alias.model_id == model.id).order_by(Alias.name)))


def create(s: Session, model: Model, name: str, version: Version, actor: str, reason: str | None) -> Alias:
    """A new alias, at generation 1 or one above the last of an alias of that name that was deleted."""
    last = s.scalar(
        select(AliasMove.generation)
        .where(AliasMove.model_id == model.id, AliasMove.alias == name)
        .order_by(AliasMove.id.desc())
        .limit(1)
    )
    alias = Alias(model_id=model.id, name=name, version_id=version.id, generation=(last or 0) + 1)
    s.add(alias)
    s.flush()
    _record(s, alias, "create", None, version.id, actor, reason)
    return alias


def promote(s: Session, claim: Claim, *, actor: str) -> bool:
    """Point production at the claim's candidate, if production is still what the gate compared with.

    False, and nothing moves, when the claim is lost or production has moved meanwhile.

    Raises:
        Conflict: the candidate is quarantined.
    """
    job = leases.held(s, claim)
    if job is None or claim.candidate_version_id is None:
        return False
    model = s.get_one(Model, claim.model_id)
    alias = get(s, model, PRODUCTION, lock=True)
    if alias.version_id != claim.compared_version_id:
        return False
    candidate = s.get_one(Version, claim.candidate_version_id)
    _move(s, alias, "promote", candidate, actor, _why(job), job_id=job.id)
    events.append(s, job.id, "promoted", version=candidate.id)
    return True


def _why(job: Job) -> str:
    passed = "The candidate passed the gate."
    if looser := GateSpec.model_validate(job.request.get("gate", {})).looser():
        passed += f" It was loosened: {', '.join(f'{name} {value:g}' for name, value in looser.items())}."
    if job.kind == "edit":
        return passed
    reason = job.request.get("reason")
    return f"{passed} It reverts {job.reverts_job_id}." + (f" {reason}" if reason else "")


def rollback(
    s: Session, model: Model, *, to: str | None, actor: str, reason: str | None
) -> tuple[Alias, Version]:
    """Point production at `to`, or at what it was before its present version. Instant.

    Raises:
        NotFound; Conflict: there is nothing to go back to, or the target can't serve.
    """
    alias = get(s, model, PRODUCTION, lock=True)
    target_id = to or previous_production(s, model)
    if target_id is None:
        raise Conflict(
            f"Nothing was in production before {alias.version_id}, so there is nothing to roll back to. "
            "To have a later version again, name it.",
            code="nothing_to_roll_back_to",
        )
    target = versions.get(s, model, target_id)
    if target.id == alias.version_id:
        raise Conflict(f"Production is {target.id} already.", code="already_in_production")
    _check_servable(target, force=False)
    _move(s, alias, "rollback", target, actor, reason)
    return alias, target


def previous_production(s: Session, model: Model) -> str | None:
    """What production was before it came to be what it is.

    Rolling back takes back what came since, as an editor's undo does: two rollbacks in a row go two versions
    back, and do not swing between two of them.
    """
    moves = s.execute(
        select(AliasMove.kind, AliasMove.to_version_id)
        .where(AliasMove.model_id == model.id, AliasMove.alias == PRODUCTION)
        .order_by(AliasMove.id)
    )
    been: list[str | None] = []
    for kind, version_id in moves:
        if kind == "rollback" and version_id in been:
            del been[len(been) - been[::-1].index(version_id) :]
        else:
            been.append(version_id)
    return been[-2] if len(been) > 1 else None


def set_alias(
    s: Session,
    model: Model,
    name: str,
    version_id: str,
    *,
    actor: str,
    reason: str | None = None,
    if_generation: int | None = None,
    if_present: bool = False,
    if_absent: bool = False,
    force: bool = False,
) -> Alias:
    """Create an alias or point it elsewhere.

    Raises:
        NotFound; PreconditionFailed: the alias is not at `if_generation`, or is there although
        `if_absent`; Invalid: the name is reserved; Conflict: the version can't serve, or is
        refused and `force` is not given.
    """
    if name == versions.ROOT or is_id(name, "ver"):
        raise Invalid(f"An alias can't be called {name!r}; choose another name.", code="alias_reserved")
    version = versions.get(s, model, version_id)
    alias = s.get(Alias, (model.id, name), with_for_update=True, populate_existing=True)
    found = None if alias is None else alias.generation
    stale = if_generation is not None and found != if_generation
    if stale or (if_present and alias is None) or (if_absent and alias is not None):
        raise PreconditionFailed(
            f"The alias {name!r} is at generation {found or 0}. Read it again and repeat the change.",
            generation=found,
        )
    if name == PRODUCTION:
        if force and not reason:
            raise Invalid("Forcing a refused version needs a reason.", pointer="/reason", param="reason")
        if force or alias is None or not _waits(s, alias, version):
            _check_servable(version, force=force)
    if alias is None:
        return _create_first(s, model, name, version, actor, reason, if_absent=if_absent)
    if alias.version_id != version.id:
        _move(s, alias, "set", version, actor, reason)
    return alias


def _create_first(
    s: Session,
    model: Model,
    name: str,
    version: Version,
    actor: str,
    reason: str | None,
    *,
    if_absent: bool,
) -> Alias:
    try:
        with s.begin_nested():
            return create(s, model, name, version, actor, reason)
    except IntegrityError as error:
        kind = PreconditionFailed if if_absent else Conflict
        raise kind(
            f"The alias {name!r} was made by somebody else at this very moment. Look again."
        ) from error


def delete(s: Session, model: Model, name: str, *, actor: str, if_generation: int | None = None) -> None:
    """Raises NotFound, PreconditionFailed; Conflict for production, which is always there."""
    if name == PRODUCTION:
        raise Conflict("The alias 'production' can't be deleted.", code="alias_protected")
    alias = get(s, model, name, lock=True)
    if if_generation is not None and alias.generation != if_generation:
        raise PreconditionFailed(f"The alias {name!r} is at generation {alias.generation}.")
    alias.generation += 1
    _record(s, alias, "delete", alias.version_id, None, actor, None)
    s.delete(alias)


def history(
    s: Session, model: Model, alias: str | None = None, after: int | None = None, limit: int = 20
) -> Page[AliasMove]:
    """Moves, newest first."""
    query = select(AliasMove).where(AliasMove.model_id == model.id)
    if alias is not None:
        query = query.where(AliasMove.alias == alias)
    return page(s, query, AliasMove.id, after, limit, newest_first=True)


def _waits(s: Session, production: Alias, version: Version) -> bool:
    """Whether a version has passed its gate, against the very one in production, and waits for a person.

    Raises:
        Conflict: it passed against another one than is now in production.
    """
    if version.state != "candidate" or version.job_id is None:
        return False
    if jobs.get(s, version.job_id).status != "succeeded":
        return False
    compared = reports.get(s, version.job_id)["compared_version"]
    if compared != production.version_id:
        raise Conflict(
            f"{version.id} passed its gate against {compared}, but production is {production.version_id} by "
            'now. Post the batch again, or set "force": true with a reason.',
            code="production_moved",
        )
    return True


def _check_servable(version: Version, *, force: bool) -> None:
    _check_whole(version)
    if version.state in ("refused", "candidate") and not force:
        raise Conflict(
            f"{version.id} is {version.state}: no gate has passed it. To serve it all the same, set "
            "the alias 'production' with \"force\": true and a reason.",
            code="version_not_passed",
        )


def _check_whole(version: Version) -> None:
    if version.state == "quarantined":
        raise Conflict(
            f"{version.id} is quarantined: its bytes no longer match their digest.",
            code="version_quarantined",
        )


def _move(
    s: Session,
    alias: Alias,
    kind: MoveKind,
    target: Version,
    actor: str,
    reason: str | None,
    job_id: str | None = None,
) -> None:
    before = alias.version_id
    alias.version_id, alias.generation = target.id, alias.generation + 1
    if alias.name == PRODUCTION:
        # Somebody may have found it damaged a moment ago.
        s.refresh(target, with_for_update=True)
        _check_whole(target)
        old = s.get_one(Version, before, with_for_update=True, populate_existing=True)
        if old.state == "production":
            old.state = "superseded"
        target.state = "production"
    s.flush()
    _record(s, alias, kind, before, target.id, actor, reason, job_id)


def _record(
    s: Session,
    alias: Alias,
    kind: MoveKind,
    before: str | None,
    after: str | None,
    actor: str,
    reason: str | None,
    job_id: str | None = None,
) -> None:
    s.add(
        AliasMove(
            model_id=alias.model_id,
            alias=alias.name,
            kind=kind,
            from_version_id=before,
            to_version_id=after,
            generation=alias.generation,
            actor=actor,
            reason=reason,
            job_id=job_id,
        )
    )
    s.flush()
