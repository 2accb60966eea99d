"""The tiny models that most tests of the library edit: one of each kind a test module."""

import pytest

from factedit.models import LanguageModel
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Two kinds of causal models, in turn; a module that wants others has an `lm` of its own."""
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)
