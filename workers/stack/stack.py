"""The whole stack under one data folder: what is started, in which order, with which settings."""

import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx2
from pydantic import SecretStr

from service.database import Database
from service.migrate import upgrade
from service.settings import Settings
from workers.stack import threads
from workers.stack.addresses import Addresses
from workers.stack.errors import StackError
from workers.stack.leftovers import is_running, mark, only_one
from workers.stack.local_key import local_key
from workers.stack.part import Part
from workers.stack.postgres import Postgres
from workers.stack.redis import Redis, free_port
from workers.stack.supervisor import Supervisor


class NotUp(StackError):
    """A stack holds the folder but has not come up yet."""


class PortTaken(StackError):
    """Something else listens where the API is to listen."""


@contextmanager
def stack(settings: Settings) -> Iterator[Settings]:
    """Everything runs inside, and is restarted if it dies; yields the settings that the parts got.

    PostgreSQL and Redis are started only where their URL was not given.

    Raises:
        AlreadyRunning: a stack holds the data folder.
        PortTaken: another program has the API's port.
        PartFailed: a part did not come up.
    """
    settings = _with_port(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with only_one(settings.data_dir), ExitStack() as cleanup, _supervisor(settings) as supervisor:
        settings = _with_redis(_with_postgres(settings, supervisor, cleanup), supervisor)
        upgrade(settings.database_url)
        settings = _with_our_own(settings)
        _make_key(settings)
        supervisor.start(*_parts(settings))
        Addresses(
            api_url=f"http://{settings.api_host}:{settings.api_port}",
            database_url=settings.database_url,
            redis_url=settings.redis_url,
        ).write(settings.data_dir)
        cleanup.callback(Addresses.remove, settings.data_dir)
        yield settings


@contextmanager
def record(settings: Settings) -> Iterator[Settings]:
    """Settings whose database answers: the given one, the running stack's, or one started for now.

    Raises:
        NotUp: the folder's stack is just starting or stopping.
    """
    if "database_url" in settings.model_fields_set:
        yield settings
        return
    if is_running(settings.data_dir):
        addresses = Addresses.read(settings.data_dir)
        if addresses is None:
            raise NotUp(f"The stack in {settings.data_dir} is just starting or stopping; try again.")
        yield settings.model_copy(update={"database_url": addresses.database_url})
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with only_one(settings.data_dir), ExitStack() as cleanup, _supervisor(settings) as supervisor:
        settings = _with_postgres(settings, supervisor, cleanup)
        upgrade(settings.database_url)
        yield settings


def _supervisor(settings: Settings) -> Supervisor:
    return Supervisor(settings.data_dir / "logs", {**os.environ, **mark(settings.data_dir)})


def _with_postgres(settings: Settings, supervisor: Supervisor, cleanup: ExitStack) -> Settings:
    if "database_url" in settings.model_fields_set:
        return settings
    postgres = Postgres(settings.data_dir / "postgres")
    cleanup.callback(postgres.remove_socket_dir)
    supervisor.start(postgres.part())
    return settings.model_copy(update={"database_url": postgres.url})


def _with_redis(settings: Settings, supervisor: Supervisor) -> Settings:
    if "redis_url" in settings.model_fields_set:
        return settings
    redis = Redis(settings.data_dir / "redis")
    supervisor.start(redis.part())
    return settings.model_copy(update={"redis_url": redis.url})


def _with_port(settings: Settings) -> Settings:
    """The API's port, which is free; with port 0, any that is. Otherwise we might talk to a stranger."""
    if settings.api_port == 0:
        return settings.model_copy(update={"api_port": free_port()})
    with socket.socket(socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.api_host, settings.api_port))
        except OSError as error:
            raise PortTaken(
                f"{settings.api_host}:{settings.api_port} can't be used ({error.strerror}); "
                "choose another port with FACTEDIT_API_PORT."
            ) from error
    return settings


def _with_our_own(settings: Settings) -> Settings:
    """A port and a token for the predictor, and the cores shared out."""
    port = free_port()
    ours: dict[str, object] = {
        "data_dir": settings.data_dir.resolve(),
        "predictor_host": "127.0.0.1",
        "predictor_port": port,
        "predictor_urls": [f"http://127.0.0.1:{port}"],
        "predictor_token": SecretStr(secrets.token_urlsafe(24)),
    }
    if "worker_threads" not in settings.model_fields_set:
        ours["worker_threads"] = threads.cores()
    return settings.model_copy(update=ours)


def _make_key(settings: Settings) -> None:
    """Before the API starts, which refuses to without any."""
    database = Database(settings.database_url, pool_size=1)
    try:
        local_key(database, settings.data_dir)
    finally:
        database.close()


def _parts(settings: Settings) -> list[Part]:
    def part(name: str, budget: int, ready: Callable[[], bool] | None) -> Part:
        command = (sys.executable, "-m", "workers.cli", name)
        return Part(name, command, ready, environment=environment(settings) | threads.environment(budget))

    return [
        part("predictor", settings.predictor_threads, _answers(f"{settings.predictor_urls[0]}/readyz")),
        part("worker", settings.worker_threads, None),
        part("api", 1, _answers(f"http://{settings.api_host}:{settings.api_port}/readyz")),
    ]


def _answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            return httpx2.get(url, timeout=2.0).status_code == 200
        except httpx2.TransportError:
            return False

    return ready


def environment(settings: Settings) -> dict[str, str]:
    """For a process of this stack: the environment it was started in, and the settings it came to."""
    return {
        **os.environ,
        **mark(settings.data_dir),
        "FACTEDIT_DATA_DIR": str(settings.data_dir),
        "FACTEDIT_DATABASE_URL": settings.database_url,
        "FACTEDIT_REDIS_URL": settings.redis_url,
        "FACTEDIT_API_HOST": settings.api_host,
        "FACTEDIT_API_PORT": str(settings.api_port),
        "FACTEDIT_PREDICTOR_HOST": settings.predictor_host,
        "FACTEDIT_PREDICTOR_PORT": str(settings.predictor_port),
        "FACTEDIT_PREDICTOR_URLS": ",".join(settings.predictor_urls),
        "FACTEDIT_PREDICTOR_TOKEN": settings.predictor_token.get_secret_value(),
        "FACTEDIT_PREDICTOR_THREADS": str(settings.predictor_threads),
        "FACTEDIT_WORKER_THREADS": str(settings.worker_threads),
    }
