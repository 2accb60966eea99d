"""The database connection; the only place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, text
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

AWAY = (OperationalError, InterfaceError, TimeoutError)
"""The database does not answer, or not in time. Trying again later may help."""


class Database:
    """A pool of connections. Everything inside one `transaction()` happens, or none of it does."""

    def __init__(self, url: str, *, pool_size: int = 5, max_overflow: int = 10) -> None:
        self.engine = create_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=5,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": 3,
                # A stuck lock or query is an error for one caller, never a queue of all of them.
                "options": "-c lock_timeout=5000 -c statement_timeout=30000 -c timezone=UTC",
            },
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose work is committed at the end, or undone if anything is raised."""
        with self._sessions() as session:
            try:
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise

    def ping(self) -> None:
        """Raises SQLAlchemy's OperationalError when the database does not answer."""
        with self.transaction() as s:
            s.execute(text("select 1"))

    def close(self) -> None:
        self.engine.dispose()


def sqlalchemy_url(url: str) -> str:
    """Any PostgreSQL URL, with psycopg 3 as its driver."""
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg"
    return f"{scheme}{separator}{rest}"
