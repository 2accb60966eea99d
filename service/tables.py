"""The tables. Times are the database's; words of state are checked by the database too."""

from datetime import datetime
from typing import Any, ClassVar, Literal

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import String

from factedit.facts import EditKind

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Stage = Literal["edit", "score"]
JobKind = Literal["edit", "revert"]
Phase = Literal["loading", "editing", "scoring", "publishing", "promoting"]
VersionState = Literal["candidate", "production", "superseded", "refused", "quarantined"]
Json = dict[str, Any]

PRODUCTION = "production"
NOW = func.clock_timestamp()


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {
        datetime: DateTime(timezone=True),
        Json: JSONB,
        list[str]: JSONB,
        list[Json]: JSONB,
        Status: String,
        Stage: String,
        JobKind: String,
        Phase: String,
        VersionState: String,
    }


def _one_of(column: str, *words: str) -> CheckConstraint:
    return CheckConstraint(f"{column} in ({', '.join(repr(w) for w in words)})", name=f"{column}_word")


class Model(Base):
    """A registered base model; its root weights never change."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]
    task: Mapped[str]
    architecture: Mapped[str]
    dtype: Mapped[str]
    n_blocks: Mapped[int]
    n_parameters: Mapped[int] = mapped_column(BigInteger)
    root_digest: Mapped[str]
    root_version_id: Mapped[str | None] = mapped_column(
        ForeignKey("versions.id", use_alter=True, name="models_root_version_fkey")
    )
    info: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Version(Base):
    """An immutable overlay over its model's root; the root itself is the version with none."""

    __tablename__ = "versions"
    __table_args__ = (
        _one_of("state", "candidate", "production", "superseded", "refused", "quarantined"),
        Index("versions_by_model", "model_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    job_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", use_alter=True, name="versions_job_fkey"), unique=True
    )
    overlay_digest: Mapped[str | None]
    overlay_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[VersionState]
    manifest: Mapped[Json]
    metrics: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)

    @property
    def kind(self) -> Literal["root", "edit"]:
        return "root" if self.overlay_digest is None else "edit"


class Alias(Base):
    """A name that points at a version; the only thing that ever moves."""

    __tablename__ = "aliases"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"))
    generation: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW, onupdate=NOW)


class AliasMove(Base):
    """One move of an alias: who, when, from, to, why. Append-only: a trigger refuses anything else."""

    __tablename__ = "alias_moves"
    __table_args__ = (
        _one_of("kind", "create", "promote", "rollback", "set", "delete"),
        Index("alias_moves_by_alias", "model_id", "alias", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    alias: Mapped[str]
    kind: Mapped[str]
    from_version_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    to_version_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    generation: Mapped[int]
    actor: Mapped[str]
    reason: Mapped[str | None]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[datetime] = mapped_column(server_default=NOW)


class Job(Base):
    """What one POST to /edits brought, or to /jobs/{id}/revert.

    The row is the truth; a Celery message only rings for it. `supersedes`: the earlier edits in force
    that the batch replaces, as the API shows them.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("status", "queued", "running", "succeeded", "failed", "cancelled"),
        _one_of("stage", "edit", "score"),
        _one_of("promotion", "automatic", "manual"),
        _one_of("kind", "edit", "revert"),
        CheckConstraint("(kind = 'revert') = (reverts_job_id is not null)", name="revert_of_a_job"),
        Index("jobs_by_reverted", "reverts_job_id", postgresql_where=text("reverts_job_id is not null")),
        Index(
            "one_running_job_per_model", "model_id", unique=True, postgresql_where=text("status = 'running'")
        ),
        Index("jobs_open", "id", postgresql_where=text("status in ('queued', 'running')")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    kind: Mapped[JobKind] = mapped_column(server_default=text("'edit'"))
    reverts_job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", name="jobs_reverts_job_fkey"))
    status: Mapped[Status]
    stage: Mapped[Stage]
    phase: Mapped[Phase | None]
    request: Mapped[Json]
    # `metadata` is taken by SQLAlchemy's own registry.
    user_metadata: Mapped[Json] = mapped_column("metadata")
    promotion: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    n_edits: Mapped[int]
    supersedes: Mapped[list[Json]] = mapped_column(server_default=text("'[]'::jsonb"))
    base_version_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    candidate_version_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    promoted: Mapped[bool] = mapped_column(server_default=text("false"))
    error: Mapped[Json | None]
    progress: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))
    timings: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))
    fence: Mapped[int] = mapped_column(server_default=text("0"))
    worker: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    cancel_requested_at: Mapped[datetime | None]
    actor: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class EditRow(Base):
    """One edit of a job's batch. With `erase`, `new_object` is what is trained in the old one's place."""

    __tablename__ = "edits"
    __table_args__ = (UniqueConstraint("job_id", "position"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    position: Mapped[int]
    subject: Mapped[str]
    relation: Mapped[str | None]
    prompt: Mapped[str | None]
    new_object: Mapped[str]
    erase: Mapped[bool] = mapped_column(server_default=text("false"))
    old_object: Mapped[str | None]
    paraphrases: Mapped[list[str]]
    neighbors: Mapped[list[str]]

    @property
    def kind(self) -> EditKind:
        return "erase" if self.erase else "update"


class LedgerEntry(Base):
    """An edit in force in a version."""

    __tablename__ = "ledger_entries"

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    edit_id: Mapped[str] = mapped_column(ForeignKey("edits.id"), primary_key=True)


class JobEvent(Base):
    """What happened to a job, numbered from 1 without gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    type: Mapped[str]
    data: Mapped[Json]


class Report(Base):
    """A job's regression report."""

    __tablename__ = "reports"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    body: Mapped[Json]


class RelationRow(Base):
    """A relation that a user added; the built-in ones ship with the library."""

    __tablename__ = "relations"

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    aliases: Mapped[list[str]]
    training_templates: Mapped[list[str]]
    evaluation_templates: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class ProbeRow(Base):
    """A held-out fact of a model."""

    __tablename__ = "probes"
    __table_args__ = (
        _one_of("source", "catalogue", "user"),
        # Over digests: words may be longer than an index takes.
        Index("one_probe_of_its_words", "model_id", text("md5(prompt)"), text("md5(object)"), unique=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    source: Mapped[str]
    subject: Mapped[str | None]
    relation: Mapped[str | None]
    prompt: Mapped[str]
    object: Mapped[str]
    aliases: Mapped[list[str]]
    candidates: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class ProbeOutcomeRow(Base):
    """What a version answers to a probe; the root's rows are the baseline."""

    __tablename__ = "probe_outcomes"

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    probe_id: Mapped[str] = mapped_column(ForeignKey("probes.id"), primary_key=True)
    answer: Mapped[str]
    answer_right: Mapped[bool]
    ranked_first: Mapped[bool | None]


class ApiKey(Base):
    """A key's hash and what it may do; the key itself is shown once and never stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    prefix: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    revoked_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """The first answer to a POST, given again to whoever repeats it under the same key."""

    __tablename__ = "idempotency_keys"

    actor: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    status_code: Mapped[int]
    response: Mapped[Json]
    headers: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
