"""The application: its parts, its routes, its documents."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import structlog
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.middleware import Middleware

from service import keys, logs
from service.api import problems
from service.api.dependencies import Parts
from service.api.doorman import Doorman
from service.api.openapi import Documented
from service.api.routes import edits, health, jobs, models, predict, probes, relations, versions
from service.database import Database, DatabaseAway
from service.doorbell import Doorbell
from service.predictor_client import PredictorClient
from service.settings import Settings

ROUTERS = (edits, jobs, predict, models, versions, relations, probes, health)

DESCRIPTION = """
Corrects facts inside a language model's own weights, proves that nothing else moved, and keeps every version.

POST a batch to `/edits`, poll the job, read its report, ask any version at `/predict`, roll back at once.
Every refusal is `application/problem+json` with a stable `code`.
"""

log = structlog.get_logger()


def create_app(settings: Settings) -> FastAPI:
    """The API over a migrated database. Starting it raises what `refuse_without_key` raises."""
    logs.configure()
    database = Database(settings.database_url, pool_size=10, max_overflow=settings.api_threads)
    made = Parts(
        settings=settings,
        database=database,
        doorbell=Doorbell(settings.redis_url),
        predictor=PredictorClient(settings),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api_threads
        await anyio.to_thread.run_sync(refuse_without_key, made)
        yield
        await made.predictor.close()
        made.doorbell.close()
        database.close()

    app = Documented(
        title="Factedit",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        middleware=[Middleware(Doorman, settings=settings, database=database)],
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.parts = made
    problems.install(app)
    for module in ROUTERS:
        app.include_router(module.router)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app


def refuse_without_key(parts: Parts) -> None:
    """Raises NoKey, unless FACTEDIT_INSECURE_NO_AUTH is set; NotMigrated."""
    if parts.settings.insecure_no_auth:
        return
    try:
        with parts.database.transaction() as s:
            usable = any(key.revoked_at is None for key in keys.list_keys(s))
    except DatabaseAway as error:
        # Each request looks its key up anyway; until the database is back, none gets in.
        log.warning("database_away", error=str(error))
        return
    if not usable:
        raise keys.NoKey(
            "There is no API key. Make one with `factedit key create NAME --scopes admin`, or set "
            "FACTEDIT_INSECURE_NO_AUTH=true on loopback."
        )
