"""How a stack comes to its settings: what was given stays, the rest is its own."""

import socket
from pathlib import Path

import pytest

from service.settings import Settings
from workers.stack import stack
from workers.stack.addresses import Addresses
from workers.stack.leftovers import MARK, only_one
from workers.stack.stack import NotUp, PortTaken


def test_a_taken_port_is_a_clear_word_and_not_a_talk_with_a_stranger(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        settings = Settings(data_dir=tmp_path / "data", api_port=stranger.getsockname()[1])
        with pytest.raises(PortTaken, match="FACTEDIT_API_PORT"), stack.stack(settings):
            pass
    assert not (tmp_path / "data").exists()


def test_port_zero_becomes_a_free_one() -> None:
    assert stack._with_port(Settings(api_port=0)).api_port > 0


def test_a_given_number_of_threads_stays(tmp_path: Path) -> None:
    assert stack._with_our_own(Settings(data_dir=tmp_path, worker_threads=7)).worker_threads == 7


def test_every_stack_has_a_token_of_its_own_for_its_predictor(tmp_path: Path) -> None:
    first, second = (stack._with_our_own(Settings(data_dir=tmp_path)) for _ in range(2))
    assert len(first.predictor_token.get_secret_value()) >= 32
    assert first.predictor_token != second.predictor_token


def test_the_parts_read_the_same_settings_that_the_stack_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stack._with_our_own(
        Settings(data_dir=tmp_path, api_port=4711, database_url="postgresql://x/y")
    )
    environment = stack.environment(settings)
    for name, value in environment.items():
        if name.startswith("FACTEDIT_"):
            monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert environment[MARK] == str(tmp_path.resolve())


def test_a_given_database_is_used_as_it_is(tmp_path: Path) -> None:
    given = Settings(data_dir=tmp_path / "data", database_url="postgresql://elsewhere/factedit")
    with stack.record(given) as settings:
        assert settings.database_url == "postgresql://elsewhere/factedit"
    assert not (tmp_path / "data").exists()


def test_commands_find_the_database_of_the_stack_that_runs(tmp_path: Path) -> None:
    with only_one(tmp_path):
        with pytest.raises(NotUp), stack.record(Settings(data_dir=tmp_path)):
            pass
        Addresses("http://127.0.0.1:1", "postgresql://private/factedit", "redis://x").write(tmp_path)
        with stack.record(Settings(data_dir=tmp_path)) as settings:
            assert settings.database_url == "postgresql://private/factedit"


def test_addresses_hold_passwords_and_are_for_their_owner_alone(tmp_path: Path) -> None:
    Addresses("a", "b", "c").write(tmp_path)
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0
    assert Addresses.read(tmp_path) == Addresses("a", "b", "c")
    Addresses.remove(tmp_path)
    assert Addresses.read(tmp_path) is None
