"""Every migration goes up and down, with data in the tables; and the tables are what the code says."""

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from service import jobs
from service.database import Database
from service.migrate import downgrade, upgrade
from service.tables import Base
from tests.support.records import add_job, add_model, publish


def test_the_schema_is_the_tables_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_down_and_up_again_with_data_in_it(database: Database, database_url: str) -> None:
    with database.transaction() as s:
        add_job(s, add_model(s))
        claim = jobs.claim(s, "edit", "w", 30)
        assert claim is not None
        publish(s, claim)
    database.engine.dispose()
    downgrade(database_url)
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    upgrade(database_url)
    assert set(Base.metadata.tables) < set(inspect(database.engine).get_table_names())
