"""What a candidate is to be judged by: production, the batch, and the probes to ask, read from the record."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from factedit.outcomes import ProbeOutcome
from factedit.relations import Relation
from factedit.specs import GateSpec
from service import continuity, jobs, probes, versions
from service.batches import edit_of
from service.errors import Conflict
from service.leases import Claim
from service.tables import EditRow, Job, Model, ProbeOutcomeRow, Version
from workers.report import Evidence
from workers.rows import probe_of, relations_of
from workers.selection import Selection, select
from workers.work import WorkFailed


@dataclass(frozen=True, slots=True)
class Case:
    """A candidate against what it would replace. `evidence` begins with what was answered earlier."""

    job: Job
    model: Model
    production: Version
    candidate: Version
    relations: Mapping[str, Relation]
    selection: Selection
    evidence: Evidence


def read(s: Session, claim: Claim, gate: GateSpec) -> Case:
    """The case of a claim on a score stage.

    Raises:
        WorkFailed: the candidate does not continue what is in production.
    """
    assert claim.candidate_version_id is not None
    model = s.get_one(Model, claim.model_id)
    production = s.get_one(Version, claim.compared_version_id)
    candidate = s.get_one(Version, claim.candidate_version_id)
    job = jobs.get(s, claim.job_id)
    try:
        continuity.check(s, job, production, candidate)
    except Conflict as error:
        raise WorkFailed(error.code, error.detail) from error
    sides = _reverting(s, job, production, candidate) if job.reverts_job_id else _editing(s, job, candidate)
    relations = relations_of(s, [*sides.judged, *sides.moved, *sides.kept])
    rows = probes.of_model(s, model.id)
    before, after = answers(s, production.id), answers(s, candidate.id)
    root = answers(s, model.root_version_id) if model.root_version_id else {}
    selection = select(
        [probe_of(row) for row in rows],
        always={row.id for row in rows if row.source == "user"},
        # What production has not been asked yet, it most likely answers as the root does.
        known={probe_id: answer.known for probe_id, answer in (root | before).items()},
        edits=[edit_of(row) for row in sides.moved],
        ledger=[edit_of(row) for row in sides.kept],
        relations=relations,
        count=gate.probes,
        seed=claim.seed,
    )
    evidence = Evidence(
        edits=[edit_of(row) for row in sides.judged],
        reverted=[edit_of(row) for row in sides.reverted],
        restored={row.id for row in sides.restored},
        root={i: answer.answer for i, answer in root.items()},
        before=before,
        after=after,
    )
    return Case(job, model, production, candidate, relations, selection, evidence)


@dataclass(frozen=True, slots=True)
class _Sides:
    """Which edits play which part.

    Attributes:
        judged: efficacy is the share of these that hold.
        moved: the facts that change, near which probes are drawn, and which are no probes themselves.
        kept: earlier edits in force on both sides, which are to stay.
        reverted: the edits that are to be gone; `restored`: those that come into force again.
    """

    judged: list[EditRow]
    moved: list[EditRow]
    kept: list[EditRow]
    reverted: list[EditRow] = field(default_factory=list)
    restored: list[EditRow] = field(default_factory=list)


def _editing(s: Session, job: Job, candidate: Version) -> _Sides:
    batch = jobs.edits_of(s, job.id)
    ours = {row.id for row in batch}
    ledger = [row for row in versions.ledger(s, candidate.id) if row.id not in ours]
    return _Sides(judged=batch, moved=batch, kept=ledger)


def _reverting(s: Session, job: Job, production: Version, candidate: Version) -> _Sides:
    """All that remains is judged, for all of it was trained anew."""
    before, remaining = versions.ledger(s, production.id), versions.ledger(s, candidate.id)
    were = {row.id for row in before}
    reverted = [row for row in before if row.job_id == job.reverts_job_id]
    restored = [row for row in remaining if row.id not in were]
    kept = [row for row in remaining if row.id in were]
    return _Sides(remaining, [*reverted, *restored], kept, reverted, restored)


def answers(s: Session, version_id: str) -> dict[str, ProbeOutcome]:
    """What a version has answered to its model's probes, by probe."""
    return {probe_id: _answer(row) for probe_id, row in probes.outcomes(s, version_id).items()}


def _answer(row: ProbeOutcomeRow) -> ProbeOutcome:
    return ProbeOutcome(
        probe_id=row.probe_id,
        answer=row.answer,
        answer_right=row.answer_right,
        ranked_first=row.ranked_first,
    )
