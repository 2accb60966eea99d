"""Read a version's bytes again: what is whole is served again, what is damaged no longer is."""

import structlog

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint
from service import models, versions
from service.database import Database
from service.tables import Version

log = structlog.get_logger()


def verify(database: Database, store: CheckpointStore, model_name: str, version_id: str) -> Version:
    """The version, whose root and overlay are whole; in quarantine it is no more.

    `store`: one that has verified nothing yet.

    Raises:
        NotFound. CorruptCheckpoint: whatever is made of the damaged object is quarantined. MissingCheckpoint.
    """
    with database.transaction() as s:
        model = models.get(s, model_name)
        version = versions.get(s, model, version_id)
    try:
        store.root_folder(model.root_digest)
        if version.overlay_digest is not None:
            store.load_overlay(version.overlay_digest)
    except CorruptCheckpoint as damaged:
        with database.transaction() as s:
            found = versions.quarantine_digest(s, damaged.digest)
        log.error("quarantined", digest=damaged.digest, versions=found)
        raise
    with database.transaction() as s:
        whole = versions.lift_quarantine(s, version.id)
    if version.state != whole.state:
        log.warning("quarantine_lifted", version=whole.id, state=whole.state)
    return whole
