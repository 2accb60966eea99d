"""A private PostgreSQL and Redis for the whole run; each test finds them empty."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from service.database import Database
from service.migrate import upgrade
from service.tables import Base, Model
from tests.support.api import Api, model_of, serve
from tests.support.working import Bench, add_probed_model
from workers.stack.leftovers import mark
from workers.stack.postgres import Postgres
from workers.stack.redis import Redis
from workers.stack.supervisor import Supervisor


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    folder = tmp_path_factory.mktemp("servers")
    with Supervisor(folder / "logs", {**os.environ, **mark(folder)}) as supervisor:
        yield supervisor


@pytest.fixture(scope="session")
def database_url(servers: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    postgres = Postgres(tmp_path_factory.mktemp("postgres"))
    servers.start(postgres.part())
    upgrade(postgres.url)
    yield postgres.url
    postgres.remove_socket_dir()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty, migrated database."""
    database = Database(database_url)
    with database.transaction() as s:
        names = ", ".join(Base.metadata.tables)
        s.execute(text(f"truncate {names} restart identity cascade"))
    yield database
    database.close()


@pytest.fixture(scope="session")
def _redis_server(servers: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> str:
    server = Redis(tmp_path_factory.mktemp("redis"))
    servers.start(server.part())
    return server.url


@pytest.fixture
def redis_url(_redis_server: str) -> str:
    """An empty Redis."""
    redis.Redis.from_url(_redis_server).flushall()
    return _redis_server


@pytest.fixture
def bench(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    """A worker whose child computes nothing, and a model with probes."""
    bench = Bench(database, redis_url, tmp_path)
    add_probed_model(database)
    yield bench
    bench.close()


@pytest.fixture
def model(database: Database) -> Model:
    return model_of(database)


@pytest.fixture
def api(model: Model, database: Database, database_url: str, redis_url: str) -> Iterator[Api]:
    """The whole service, with a model; a module that wants another has an `api` of its own."""
    with serve(database, database_url, redis_url) as running:
        yield running
