"""What is put into a checkpoint store, what lies there then, and how it is damaged."""

from pathlib import Path

import torch
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore

POSITIONS = tuple(range(20))
"""A stored file is damaged at so many places, from its first byte to its last."""
UNKNOWN = "0" * 64


def an_overlay() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.layers.1.mlp.down_proj.weight": torch.randn(4, 6, generator=generator).to(torch.bfloat16),
        "model.layers.2.mlp.down_proj.weight": torch.randn(4, 6, generator=generator),
    }


def a_root(folder: Path) -> Path:
    """Files as a model's folder has them; the store does not care what they say."""
    folder.mkdir()
    (folder / "config.json").write_bytes(b'{"model_type": "llama", "vocab_size": 40}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "tokenizer.json").write_bytes(b'{"version": "1.0"}')
    return folder


def names(store: CheckpointStore, shelf: str) -> list[str]:
    return sorted(entry.name for entry in (store.path / shelf).iterdir())


def damage(file: Path, place: int, of: int = len(POSITIONS)) -> None:
    """Flip one bit of the byte that lies `place` parts of `of` into the file."""
    raw = bytearray(file.read_bytes())
    raw[round(place * (len(raw) - 1) / (of - 1))] ^= 1 << (place % 8)
    file.write_bytes(raw)
