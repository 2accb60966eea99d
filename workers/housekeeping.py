"""What is of no use any more is thrown away: unfinished work of killed processes, old answers to POSTs."""

import structlog

from factedit import leftovers
from service import idempotency
from service.database import Database
from service.settings import Settings

LEFTOVER_SECONDS = 24 * 3600.0
"""No process is at one object for so long without writing a byte of it."""

log = structlog.get_logger()


def keep_house(settings: Settings, database: Database) -> None:
    """Raises DatabaseAway."""
    if gone := leftovers.clear(settings.store_dir, LEFTOVER_SECONDS):
        log.info("leftovers_removed", names=gone)
    with database.transaction() as s:
        idempotency.expire(s, settings.idempotency_days)
