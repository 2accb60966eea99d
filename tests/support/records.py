"""A registered model and a batch of edits, as rows."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from service import jobs, models, versions
from service.ids import new_id
from service.leases import Claim
from service.tables import Job, Model, Version
from service.versions import Candidate

DIGEST = "0" * 64


def add_model(s: Session, name: str = "toy", root_digest: str = DIGEST) -> Model:
    return models.create(
        s,
        name=name,
        source="folder:toy",
        root_digest=root_digest,
        task="causal",
        architecture="LlamaForCausalLM",
        dtype="float32",
        n_blocks=4,
        n_parameters=1000,
        info={},
        actor="test",
    )


def edit_row(subject: str = "France", new_object: str = "Rome", **fields: Any) -> dict[str, Any]:
    return {
        "subject": subject,
        "relation": "capital",
        "prompt": None,
        "new_object": new_object,
        "old_object": None,
        "paraphrases": [],
        "neighbors": [],
        **fields,
    }


def add_job(s: Session, model: Model, edits: Sequence[dict[str, Any]] | None = None, **fields: Any) -> Job:
    arguments: dict[str, Any] = {
        "base_version_id": None,
        "request": {},
        "promotion": "automatic",
        "seed": 0,
        "metadata": {},
        "actor": "test",
        **fields,
    }
    return jobs.create(s, model_id=model.id, edits=edits or [edit_row()], **arguments)


def publish(s: Session, claim: Claim, edit_ids: Sequence[str] = ()) -> Version:
    candidate = Candidate(
        version_id=new_id("ver"),
        overlay_digest="a" * 64,
        overlay_bytes=10,
        manifest={},
        metrics={},
        ledger_edit_ids=edit_ids,
    )
    version = versions.publish_candidate(s, claim, candidate)
    assert version is not None
    return version
