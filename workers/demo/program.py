"""Starts the stack, or uses the one that runs in the data folder, and tells the story on it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from service.settings import get_settings
from workers.demo.client import Api, Problem
from workers.demo.story import NotPromoted, tell
from workers.demo.tables import promises
from workers.operations import DEFAULT_MODEL, add_default_model, key_of_this_folder
from workers.stack.addresses import Addresses
from workers.stack.leftovers import is_running
from workers.stack.signals import ending_in_order
from workers.stack.stack import record, stack


def run() -> int:
    """0 when every promise was kept, 1 when one was not, 130 when interrupted."""
    console = Console()
    with ending_in_order():
        try:
            with _api(console) as api:
                checks = tell(api, DEFAULT_MODEL, console)
        except (NotPromoted, Problem) as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            return 1
        except KeyboardInterrupt:
            console.print("Ended.")
            return 130
    console.print(promises(checks))
    return 0 if all(check.kept for check in checks) else 1


@contextmanager
def _api(console: Console) -> Iterator[Api]:
    """A client of a stack with the default model; what was started for it is ended afterwards."""
    settings = get_settings()
    if is_running(settings.data_dir) and (addresses := Addresses.read(settings.data_dir)) is not None:
        console.print(f"Using the stack that runs at {addresses.api_url}.")
        with record(settings) as running:
            add_default_model(running)
            key = key_of_this_folder(running)
        with Api(addresses.api_url, key) as api:
            yield api
        return
    if "api_port" not in settings.model_fields_set:
        settings = settings.model_copy(update={"api_port": 0})
    console.print("Starting PostgreSQL, Redis, a worker, the predictor and the API …")
    with stack(settings) as running:
        add_default_model(running)
        with Api(f"http://{running.api_host}:{running.api_port}", key_of_this_folder(running)) as api:
            yield api
        console.print("Ending what was started …")
