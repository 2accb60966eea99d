"""One stack over the toy model for all these tests; each finds it whole, and production at the root."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.small_disk import SmallDisk, small_disk
from tests.support.toy_stack import SLOW, Json, ToyStack, eventually, quick, toy_stack

SETTINGS = {"FACTEDIT_LEASE_SECONDS": "3", "FACTEDIT_SWEEP_SECONDS": "0.5", "FACTEDIT_DEVICE": "cpu"}
USUAL_FILES = 1024


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy_stack")


@pytest.fixture(scope="session")
def store_disk(folder: Path) -> Iterator[SmallDisk | None]:
    """The disk that the stack's store has to itself, where one may mount one."""
    with small_disk(folder / "data" / "store") as disk:
        yield disk


@contextmanager
def usual_files() -> Iterator[None]:
    """A process may open no more files than it may on most machines, unless it asks for more."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    fewer = USUAL_FILES if now == resource.RLIM_INFINITY else min(USUAL_FILES, now)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fewer, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, most))


@pytest.fixture(scope="session")
def running(folder: Path, store_disk: SmallDisk | None) -> Iterator[ToyStack]:
    with pytest.MonkeyPatch.context() as patch, usual_files():
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        with toy_stack(folder) as started:
            yield started


@pytest.fixture
def toy(running: ToyStack) -> Iterator[ToyStack]:
    running.start_at_root()
    yield running
    eventually(running.whole, 60)


@pytest.fixture(scope="session")
def undisturbed(running: ToyStack) -> Json:
    """The version that the slow batch becomes when nobody is killed."""
    return running.made(SLOW)


@pytest.fixture(scope="session")
def edited(running: ToyStack) -> Json:
    """A version that passed the gate, in which Rome is the capital of France."""
    return running.made(quick("France", "Rome"))
