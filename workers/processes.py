"""The start commands of the API and the Celery worker, the same in a container and in the stack."""

import sys

from service.settings import get_settings
from workers.open_files import allow_many

DRAIN_SECONDS = 5
"""For requests already accepted when told to stop."""


def run_api() -> None:
    import uvicorn

    from service.api.app import refuse_without_key
    from service.api.asgi import app

    settings = get_settings()
    allow_many()
    # The server refuses too when it starts, but with a traceback.
    refuse_without_key(app.state.parts)
    uvicorn.run(
        app,
        host=settings.api_host,
        port=settings.api_port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def run_worker() -> None:
    from workers.celery_app import run_worker as run

    sys.exit(run(get_settings()))
