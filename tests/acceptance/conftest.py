"""The real stack with the real model, once for all acceptance tests.

Its data folder, $FACTEDIT_TEST_CACHE or `.factedit-test`, outlives the run: the model is fetched,
converted and asked what it knows only the first time.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from workers.demo.client import Api
from workers.operations import DEFAULT_MODEL, add_default_model, key_of_this_folder
from workers.stack.stack import stack as started

CACHE = Path(os.environ.get("FACTEDIT_TEST_CACHE", Path(__file__).parents[2] / ".factedit-test"))


@pytest.fixture(scope="session")
def stack() -> Iterator[Settings]:
    """The settings of a running stack in which SmolLM2-135M is registered."""
    with started(Settings(data_dir=CACHE, api_port=0)) as settings:
        add_default_model(settings)
        yield settings


@pytest.fixture(scope="session")
def client(stack: Settings) -> Iterator[Api]:
    url = f"http://{stack.api_host}:{stack.api_port}"
    with Api(url, key_of_this_folder(stack)) as api:
        yield api


@pytest.fixture
def api(client: Api) -> Api:
    """A client that finds production at the root."""
    model = client.get(f"/models/{DEFAULT_MODEL}")
    if model["production_version"] != model["root_version"]:
        to = {"to": model["root_version"], "reason": "A test starts at the root."}
        client.post(f"/models/{DEFAULT_MODEL}/rollback", to)
    return client
