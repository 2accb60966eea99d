"""The start commands of the API and the Celery worker, the same in a container and in the stack."""

import sys

from service.settings import get_settings

DRAIN_SECONDS = 5
"""For requests already accepted when told to stop."""


def run_api() -> None:
    import uvicorn

    settings = get_settings()
    uvicorn.run(
        "service.api.asgi:app",
        host=settings.api_host,
        port=settings.api_port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def run_worker() -> None:
    from workers.celery_app import run_worker as run

    sys.exit(run(get_settings()))
