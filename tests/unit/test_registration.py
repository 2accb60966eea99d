"""How a model may be called: as every path of the API takes it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.database import Database
from service.errors import Invalid
from service.settings import Settings
from workers.registration import check_name, register


@pytest.mark.parametrize("name", ["qwen", "Qwen2.5-0.5B", "a", "0", "a" * 100])
def test_a_name_that_fits_in_a_path_will_do(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("qwen@new", "qwen-new"),
        ("my model", "my-model"),
        (".hidden", "hidden"),
        ("", "model"),
        ("a" * 101, "a" * 100),
        ("qwen\n", "qwen"),
    ],
)
def test_another_is_refused_before_anything_is_done_and_one_that_fits_proposed(
    name: str, fit: str, tmp_path: Path
) -> None:
    nowhere = Database("postgresql://127.0.0.1:1/none")
    with pytest.raises(Invalid) as refusal:
        register(nowhere, Settings(data_dir=tmp_path), name, "hub:Qwen/Qwen2.5-0.5B")
    assert refusal.value.detail.endswith(f"{fit!r} would do.")
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=120))
def test_what_is_proposed_always_fits(name: str) -> None:
    try:
        check_name(name)
    except Invalid as refusal:
        check_name(refusal.detail.split("'")[-2])
