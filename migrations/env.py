"""Alembic's environment: one connection, one transaction for all revisions."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from service.tables import Base

# Two processes that start at once must not both migrate.
MIGRATION_LOCK = 7_304_211


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
