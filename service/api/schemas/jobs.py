"""Jobs, their events and reports, as the API shows them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.common import Body, Json, unix, unix_or_none
from service.api.schemas.edits import Metadata, Promotion, Superseded
from service.api.text import Reason
from service.tables import Job, JobEvent, JobKind, Phase, Stage, Status

EXAMPLE: Json = {
    "id": "job_0193c5a8e2f07a10b3d2c4e5f6a7b8c9",
    "object": "job",
    "model": "smollm2",
    "kind": "edit",
    "reverts": None,
    "status": "running",
    "stage": "edit",
    "phase": "editing",
    "n_edits": 10,
    "supersedes": [
        {
            "edit_id": "edt_0193c5a8e2f07a10b3d2c4e5f6a7b8c9",
            "job_id": "job_0193b0c4d1e27a10b3d2c4e5f6a7b8c9",
            "subject": "Burundi",
            "relation": "capital",
            "prompt": None,
            "old": "Ngozi",
            "new": "Gitega",
        }
    ],
    "base_version": "ver_0193c5a8e2f07a10b3d2c4e5f6a7b8c9",
    "candidate_version": None,
    "promotion": "automatic",
    "promoted": False,
    "seed": 0,
    "request": {"method": {"name": "auto"}, "blocks": "auto"},
    "metadata": {},
    "error": None,
    "progress": {
        "phase": "editing",
        "step": 5,
        "max_steps": 120,
        "loss": 1.2,
        "edits_holding": 4,
        "edits_total": 10,
    },
    "timings": {},
    "attempts": 1,
    "cancel_requested_at": None,
    "created_at": 1795459200,
    "started_at": 1795459201,
    "finished_at": None,
}


class JobError(BaseModel):
    """Why a job failed. `regression_gate`: the candidate was refused, production did not move."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str


class JobOut(BaseModel):
    """What one POST to /edits, or to /jobs/{job}/revert, brought, and how far it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: str
    object: Literal["job"] = "job"
    model: str
    kind: JobKind
    reverts: str | None = Field(description="The job whose batch a `revert` takes out again.")
    status: Status
    stage: Stage
    phase: Phase | None = Field(description="What is being done while the job runs.")
    n_edits: int = Field(description="New edits; a revert brings none.")
    supersedes: list[Superseded] = Field(
        description="Earlier edits in force that the batch replaces; settled once it runs."
    )
    base_version: str | None = Field(description="The version it builds on; null until it runs.")
    candidate_version: str | None
    promotion: str
    promoted: bool
    seed: int
    request: Json = Field(
        description="Method, blocks, constraint and gate, with all defaults; the `base_version`, if you "
        "named one; a revert's `reason` too."
    )
    metadata: Json
    error: JobError | None
    progress: Json
    timings: Json = Field(description="Seconds by phase, as far as they are known.")
    attempts: int = Field(description="How often this stage was begun.")
    cancel_requested_at: int | None
    created_at: int
    started_at: int | None
    finished_at: int | None


def job_out(job: Job, model: str) -> JobOut:
    return JobOut(
        id=job.id,
        model=model,
        kind=job.kind,
        reverts=job.reverts_job_id,
        status=job.status,
        stage=job.stage,
        phase=job.phase,
        n_edits=job.n_edits,
        supersedes=[Superseded.model_validate(entry) for entry in job.supersedes],
        base_version=job.base_version_id,
        candidate_version=job.candidate_version_id,
        promotion=job.promotion,
        promoted=job.promoted,
        seed=job.seed,
        request=job.request,
        metadata=job.user_metadata,
        error=None if job.error is None else JobError.model_validate(job.error),
        progress=job.progress,
        timings=job.timings,
        attempts=job.attempts,
        cancel_requested_at=unix_or_none(job.cancel_requested_at),
        created_at=unix(job.created_at),
        started_at=unix_or_none(job.started_at),
        finished_at=unix_or_none(job.finished_at),
    )


class RevertIn(Body):
    """How to take a job's batch out again; all of it may be left out."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "The source was wrong.", "promotion": "manual"}]}
    )

    reason: Reason | None = Field(default=None, description="Kept in the job, and in the history.")
    promotion: Promotion | None = Field(
        default=None, description="Left out: as the job had it that made production."
    )
    metadata: Metadata = Field(default={})


class EventOut(BaseModel):
    """Something that happened to a job, numbered from 1."""

    id: int
    type: str
    at: int
    data: Json


class Events(BaseModel):
    """A job's events after a number."""

    object: Literal["list"] = "list"
    data: list[EventOut]
    has_more: bool


def event_out(event: JobEvent) -> EventOut:
    return EventOut(id=event.seq, type=event.type, at=unix(event.at), data=event.data)


class ReportOut(BaseModel):
    """The regression report: each edit and each probe before and after, and the gate's verdict."""

    model_config = ConfigDict(extra="allow")

    job: str
    kind: JobKind = "edit"
    reverts: str | None = None
    base_version: str
    compared_version: str = Field(description="Production at the time: what the candidate would replace.")
    candidate_version: str
    verdict: Json = Field(description="`decision` (pass, refuse, inconclusive), `reasons`, `groups`.")
    summary: Json
    edits: list[Json] = Field(
        description="The batch's; of a revert: all that remain in force, those that came back `restored`."
    )
    supersedes: list[Superseded] = []
    reverted: list[Json] = Field(default=[], description="Of a revert: the edits that are to be gone.")
    neighbors: list[Json]
    probes: dict[str, Any] = Field(description="`flipped`: those whose outcome changed; `items`: all.")
    integrity: Json = Field(description="Digests before and after, what changed, and by how much.")
    timings: Json = Field(description="Seconds by phase; `service_overhead` is what no work accounts for.")
