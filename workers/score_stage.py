"""The score stage: from a candidate to a verdict, and on a pass to production. A refusal moves nothing."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from factedit.gate import Verdict
from factedit.outcomes import ProbeOutcome
from factedit.specs import GateSpec
from service import aliases, events, leases, probes, reports
from service.errors import Conflict
from service.leases import Claim
from service.settings import Settings
from service.tables import NOW, PRODUCTION, Alias, Job
from workers import score_case
from workers.orders import ScoreDone, ScoreOrder
from workers.report import report
from workers.score_case import Case
from workers.selection import Asked
from workers.supervisor import Supervisor, still_ours
from workers.warming import warm
from workers.work import Json, WorkFailed

Seconds = defaultdict[str, float]

COMPARISONS = 3
"""How often a candidate is compared again because production moved meanwhile."""


def run(supervisor: Supervisor, settings: Settings, claim: Claim) -> None:
    """Judge the claim's candidate against production; then promote it, leave it for a person, or refuse it.

    Raises:
        WorkFailed: production moved each time; and whatever Supervisor.carry_out raises.
    """
    spent: Seconds = defaultdict(float)
    for _ in range(COMPARISONS):
        comparison = Comparison(supervisor, settings, claim, spent)
        verdict = comparison.judge()
        if verdict.decision == "pass" and claim.promotion == "automatic":
            warm(settings, comparison.case.model.root_digest, comparison.case.candidate.overlay_digest)
        if supervisor.persist(partial(comparison.settle, verdict=verdict)):
            return
        now = supervisor.persist(partial(_production, model_id=claim.model_id))
        claim = replace(claim, compared_version_id=now)
    raise WorkFailed(
        "production_moved",
        f"Production moved during each of {COMPARISONS} comparisons; post the batch again when it rests.",
    )


@dataclass
class Comparison:
    """One candidate against one version. `spent`: seconds by phase, over all comparisons of the job."""

    supervisor: Supervisor
    settings: Settings
    claim: Claim
    spent: Seconds
    gate: GateSpec = field(init=False)
    case: Case = field(init=False)
    fresh: dict[str, list[ProbeOutcome]] = field(init=False)

    def __post_init__(self) -> None:
        self.gate = GateSpec.model_validate(self.claim.request.get("gate", {}))
        self.case = self.supervisor.persist(lambda s: score_case.read(s, self.claim, self.gate))
        self.fresh = {self.case.production.id: [], self.case.candidate.id: []}

    def judge(self) -> Verdict:
        """Ask until the gate knows, or all probes are asked."""
        selection, evidence = self.case.selection, self.case.evidence
        self._ask(selection.first, with_edits=True)
        verdict = evidence.verdict(self.gate)
        if verdict.decision == "inconclusive" and selection.more:
            self._ask(selection.more, with_edits=False)
            verdict = evidence.verdict(self.gate)
        return verdict

    def _ask(self, asked: Sequence[Asked], *, with_edits: bool) -> None:
        case, evidence = self.case, self.case.evidence
        order = ScoreOrder(
            store_dir=self.settings.store_dir.resolve(),
            device=self.settings.device,
            root_digest=case.model.root_digest,
            before=case.production.overlay_digest,
            after=case.candidate.overlay_digest,
            batch_size=self.settings.score_batch,
            edits=[*evidence.edits, *evidence.reverted] if with_edits else [],
            relations=dict(case.relations),
            probes_before=[one.probe for one in asked if one.probe.id not in evidence.before],
            probes_after=[one.probe for one in asked if one.probe.id not in evidence.after],
            said=self._said(asked),
        )
        done = self.supervisor.carry_out(self.claim, "score", order)
        answered = ScoreDone.model_validate(done.result)
        evidence.add(asked, answered.before, answered.after)
        for phase, seconds in done.seconds.items():
            self.spent[phase] += seconds
        self.fresh[case.production.id] += answered.before.probes
        self.fresh[case.candidate.id] += answered.after.probes

    def _said(self, asked: Sequence[Asked]) -> dict[str, str]:
        """What production answered earlier, and where it was not asked yet, the root."""
        before = {probe_id: answer.answer for probe_id, answer in self.case.evidence.before.items()}
        said = {**self.case.evidence.root, **before}
        return {one.probe.id: said[one.probe.id] for one in asked if one.probe.id in said}

    def settle(self, s: Session, verdict: Verdict) -> bool:
        """Write down what came out and end the job, all at once; False if production has moved."""
        began = time.monotonic()
        job = still_ours(s, self.claim)
        self._keep_answers(s)
        events.append(s, job.id, "verdict", decision=verdict.decision, reasons=list(verdict.reasons))
        passed, promoted = verdict.decision == "pass", False
        if passed and self.claim.promotion == "automatic":
            leases.note(s, self.claim, phase="promoting")
            try:
                promoted = aliases.promote(s, self.claim, actor=job.actor)
            except Conflict as error:
                raise WorkFailed("corrupt_checkpoint", error.detail) from error
            if not promoted:
                return False
        self.spent["promoting"] += time.monotonic() - began
        job.timings = _timings(s, job, self.spent)
        reports.store(s, job.id, self._report(verdict, job.timings))
        if passed:
            leases.succeed(s, self.claim, promoted=promoted)
        else:
            leases.fail(s, self.claim, "regression_gate", _refusal(verdict))
        return True

    def _keep_answers(self, s: Session) -> None:
        earlier = {one.probe.id for one in self.case.evidence.asked if one.group == "earlier_edit"}
        for version_id, answers in self.fresh.items():
            rows = [asdict(answer) for answer in answers if answer.probe_id not in earlier]
            probes.store_outcomes(s, version_id, rows)

    def _report(self, verdict: Verdict, timings: Json) -> Json:
        case = self.case
        metrics = case.candidate.metrics
        figures = ("max_abs_change", "l2_norm", "share_at_bound")
        return report(
            case.evidence,
            verdict,
            versions={
                "job": self.claim.job_id,
                "kind": case.job.kind,
                "reverts": case.job.reverts_job_id,
                "base_version": self.claim.base_version_id,
                "compared_version": case.production.id,
                "candidate_version": case.candidate.id,
            },
            integrity={
                **metrics.get("integrity", {}),
                "overlay_digest": case.candidate.overlay_digest,
                **{name: metrics.get(name) for name in figures},
            },
            timings=timings,
            supersedes=case.job.supersedes,
        )


def _production(s: Session, model_id: str) -> str:
    return s.get_one(Alias, (model_id, PRODUCTION)).version_id


def _refusal(verdict: Verdict) -> str:
    return f"The candidate is not promoted; production is as it was. {' '.join(verdict.reasons)}"


def _timings(s: Session, job: Job, spent: Seconds) -> dict[str, float]:
    """The job's timings, all of them, in seconds; `service_overhead` is what nobody's work accounts for."""
    phases = ("queued", "loading", "editing", "publishing", "scoring", "promoting")
    times = {name: job.timings.get(name, 0.0) + spent[name] for name in phases}
    total = s.scalar(select(func.extract("epoch", NOW - Job.created_at)).where(Job.id == job.id))
    times["total"] = float(total or 0.0)
    others = sum(times[name] for name in ("queued", "loading", "editing", "scoring"))
    times["service_overhead"] = max(0.0, times["total"] - others)
    return {name: round(value, 3) for name, value in times.items()}
