"""What the operator's commands do: models, keys, the schema, and the stack left running."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from rich.console import Console

from service.errors import ServiceError
from service.settings import get_settings
from workers.stack.errors import StackError
from workers.stack.local_key import local_key
from workers.stack.signals import ending_in_order
from workers.stack.stack import stack

DEFAULT_MODEL = "smollm2"

out = Console()


@contextmanager
def complaints() -> Iterator[None]:
    """What is wrong is said in a sentence; a traceback is for what nobody foresaw."""
    try:
        yield
    except (StackError, ServiceError) as error:
        sys.exit(f"factedit: {error}")
    except ValidationError as error:
        settings = "; ".join(
            f"FACTEDIT_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
        )
        sys.exit(f"factedit: {settings}")


def serve(*, default_model: bool) -> None:
    with ending_in_order():
        try:
            with stack(get_settings()) as settings:
                with _database(settings) as database:
                    key = local_key(database, settings.data_dir)
                if default_model:
                    add_default_model(settings)
                out.print(f"\nFactedit runs at [bold]http://{settings.api_host}:{settings.api_port}[/]")
                out.print(f"API key: [bold]{key}[/]   Ctrl-C ends it.")
                threading.Event().wait()
        except KeyboardInterrupt:
            out.print("Ended.")
