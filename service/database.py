"""The database connection; the only place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

PASSING = (
    "08",  # the connection broke
    "40",  # two transactions stood in each other's way
    "53",  # too many connections, or its disk or its memory is full
    "55P03",  # a lock was not to be had in time
    "57014",  # a statement took too long
    "57P0",  # the server is stopping or starting
)
"""How the SQLSTATE begins of what the database says while it is away, starting or overloaded."""

MOST_IDLE_MS = 20_000
"""Whoever is frozen amid a transaction for longer loses it, and its locks: others wait for them."""

NO_SCHEMA = ("42P01", "42703")
"""The SQLSTATE of a table or column that is not there."""


class DatabaseAway(Exception):
    """The database does not answer, or not in time. Trying again later may help."""


class NotMigrated(Exception):
    """The database lacks a table or column of ours: its schema is an older one, or there is none."""


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
                # A host that vanished is noticed within some ten seconds, and not when the kernel gives up.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,
                # A stuck lock or query is an error for one caller, never a queue of all of them.
                "options": "-c lock_timeout=5000 -c statement_timeout=30000 "
                f"-c idle_in_transaction_session_timeout={MOST_IDLE_MS} -c timezone=UTC",
            },
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose work is committed at the end, or undone if anything is raised.

        Raises:
            DatabaseAway: at the end it may or may not have been committed. NotMigrated.
        """
        with telling_what_is_wrong(), self._sessions() as session:
            try:
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise

    def ping(self) -> None:
        """Raises DatabaseAway."""
        with self.transaction() as s:
            s.execute(text("select 1"))

    def close(self) -> None:
        self.engine.dispose()


def now(s: Session) -> datetime:
    """By the database's clock, which is the only one that jobs and versions go by."""
    found: datetime = s.execute(text("select clock_timestamp()")).scalar_one()
    return found


@contextmanager
def telling_what_is_wrong() -> Iterator[None]:
    """Raises DatabaseAway or NotMigrated in the place of what the driver raises, if it is one of these."""
    try:
        yield
    except SQLAlchemyError as error:
        if _is_away(error):
            cause = type(getattr(error, "orig", None) or error).__name__
            raise DatabaseAway(f"The database does not answer ({cause}).") from error
        if _sqlstate(error) in NO_SCHEMA:
            raise NotMigrated("The database lacks the newest schema; run `factedit db upgrade`.") from error
        raise


def _is_away(error: SQLAlchemyError) -> bool:
    if not isinstance(error, DBAPIError):
        return isinstance(error, TimeoutError)
    if error.connection_invalidated:
        return True
    state = _sqlstate(error)
    if state is None:
        # The server said nothing. What the driver refuses by itself is of other kinds.
        return isinstance(error, (OperationalError, InterfaceError))
    return state.startswith(PASSING)


def _sqlstate(error: SQLAlchemyError) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def sqlalchemy_url(url: str) -> str:
    """Any PostgreSQL URL, with psycopg 3 as its driver."""
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        scheme = "postgresql+psycopg"
    return f"{scheme}{separator}{rest}"
