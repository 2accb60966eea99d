"""The models that most tests of the library edit, one of each kind a test module, and an empty store."""

from pathlib import Path

import pytest

from factedit.checkpoint_store import CheckpointStore
from factedit.models import LanguageModel, load_model
from factedit.toy import write_toy_model
from tests.support.tiny_models import SHAPES, tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Two kinds of causal models, in turn; a module that wants others has an `lm` of its own."""
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module", params=SHAPES)
def any_lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Every shape that we claim to edit, in turn."""
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once: that takes seconds."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_model(folder)
    return folder


@pytest.fixture(scope="module")
def toy(toy_folder: Path) -> LanguageModel:
    return load_model(toy_folder, device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "store")
