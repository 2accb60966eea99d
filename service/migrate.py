"""Bring a database to the newest schema, or back."""

from importlib import resources

from alembic import command
from alembic.config import Config

from service.database import sqlalchemy_url, telling_what_is_wrong


def upgrade(url: str, revision: str = "head") -> None:
    """Raises DatabaseAway."""
    with telling_what_is_wrong():
        command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str = "base") -> None:
    """Raises DatabaseAway."""
    with telling_what_is_wrong():
        command.downgrade(_config(url), revision)


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")))
    # ConfigParser would take a % in a password for a reference.
    config.set_main_option("sqlalchemy.url", sqlalchemy_url(url).replace("%", "%%"))
    return config
