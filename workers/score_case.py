"""What a candidate is to be judged by: production, the batch, and the probes to ask, read from the record."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from factedit.relations import Relation
from factedit.specs import GateSpec
from service import jobs, probes, versions
from service.jobs import Claim
from service.tables import Model, ProbeOutcomeRow, Version
from workers.orders import ProbeAnswer
from workers.report import Evidence
from workers.rows import edit_of, probe_of, relations_of
from workers.selection import Selection, select


@dataclass(frozen=True, slots=True)
class Case:
    """A candidate against what it would replace. `evidence` begins with what was answered earlier."""

    model: Model
    production: Version
    candidate: Version
    relations: Mapping[str, Relation]
    selection: Selection
    evidence: Evidence


def read(s: Session, claim: Claim, gate: GateSpec) -> Case:
    """The case of a claim on a score stage."""
    assert claim.candidate_version_id is not None
    model = s.get_one(Model, claim.model_id)
    production = s.get_one(Version, claim.compared_version_id)
    candidate = s.get_one(Version, claim.candidate_version_id)
    batch = jobs.edits_of(s, claim.job_id)
    ours = {row.id for row in batch}
    ledger = [row for row in versions.ledger(s, candidate.id) if row.id not in ours]
    relations = relations_of(s, [*batch, *ledger])
    rows = probes.of_model(s, model.id)
    before, after = answers(s, production.id), answers(s, candidate.id)
    root = answers(s, model.root_version_id) if model.root_version_id else {}
    edits = [edit_of(row) for row in batch]
    selection = select(
        [probe_of(row) for row in rows],
        always={row.id for row in rows if row.source == "user"},
        # What production has not been asked yet, it most likely answers as the root does.
        known={probe_id: answer.known for probe_id, answer in (root | before).items()},
        edits=edits,
        ledger=[edit_of(row) for row in ledger],
        relations=relations,
        count=gate.probes,
        seed=claim.seed,
    )
    evidence = Evidence(
        edits=edits, root={i: answer.answer for i, answer in root.items()}, before=before, after=after
    )
    return Case(model, production, candidate, relations, selection, evidence)


def answers(s: Session, version_id: str) -> dict[str, ProbeAnswer]:
    """What a version has answered to its model's probes, by probe."""
    return {probe_id: _answer(row) for probe_id, row in probes.outcomes(s, version_id).items()}


def _answer(row: ProbeOutcomeRow) -> ProbeAnswer:
    return ProbeAnswer(
        probe_id=row.probe_id,
        answer=row.answer,
        answer_right=row.answer_right,
        ranked_first=row.ranked_first,
    )
