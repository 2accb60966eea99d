"""Registered models."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from factedit.relations import nearest
from service.database import now
from service.errors import Conflict, NotFound
from service.ids import new_id
from service.paging import Page, page
from service.tables import PRODUCTION, Alias, AliasMove, Model, Version


def get(s: Session, name: str) -> Model:
    """Raises NotFound, with the nearest names."""
    model = find(s, name)
    if model is None:
        raise NotFound("model", name, nearest(name, s.scalars(select(Model.name))))
    return model


def find(s: Session, name: str) -> Model | None:
    return s.scalar(select(Model).where(Model.name == name))


def list_models(s: Session, after: str | None = None, limit: int = 20) -> Page[Model]:
    return page(s, select(Model), Model.id, after, limit)


def create(
    s: Session,
    *,
    name: str,
    source: str,
    root_digest: str,
    task: str,
    architecture: str,
    dtype: str,
    n_blocks: int,
    n_parameters: int,
    info: dict[str, Any],
    actor: str,
) -> Model:
    """A model, its root as a version, and `production` pointing at it, all in one.

    Raises:
        Conflict: the name is taken.
    """
    if find(s, name) is not None:
        raise Conflict(f"There is a model {name!r} already; choose another name.", code="model_exists")
    model = Model(
        id=new_id("mdl"),
        name=name,
        source=source,
        root_digest=root_digest,
        task=task,
        architecture=architecture,
        dtype=dtype,
        n_blocks=n_blocks,
        n_parameters=n_parameters,
        info=info,
    )
    s.add(model)
    s.flush()
    root = Version(
        id=new_id("ver", now(s)),
        model_id=model.id,
        overlay_digest=None,
        overlay_bytes=0,
        state="production",
        manifest={},
        metrics={},
    )
    s.add(root)
    s.flush()
    model.root_version_id = root.id
    s.add(Alias(model_id=model.id, name=PRODUCTION, version_id=root.id, generation=1))
    s.flush()
    s.add(
        AliasMove(
            model_id=model.id,
            alias=PRODUCTION,
            kind="create",
            to_version_id=root.id,
            generation=1,
            actor=actor,
            reason="The model was registered.",
        )
    )
    s.flush()
    return model
