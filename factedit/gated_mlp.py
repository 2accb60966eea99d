"""A block's gated MLP, where it has one: its neurons can be told apart, and others put beside them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from factedit.models import LanguageModel


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """A block's gated MLP: down(act(gate x) * up x); the names of its matrices, [m, d], [m, d], [d, m]."""

    act: Callable[[Tensor], Tensor]
    gate: str
    up: str
    down: str

    @property
    def names(self) -> list[str]:
        return [self.gate, self.up, self.down]

    @property
    def module(self) -> str:
        """The name of the module that holds the matrices."""
        return self.gate.removesuffix(".gate_proj.weight")


def gated_mlp(lm: LanguageModel, block: int) -> GatedMlp | None:
    """The block's only gated MLP of plain matrices without biases; None if it has another kind."""
    found: dict[str, list[str]] = {}
    for name in lm.block_tensors(block, "mlp"):
        for part in ("gate_proj", "up_proj", "down_proj"):
            if name.endswith(f".{part}.weight"):
                found.setdefault(part, []).append(name)
    if sorted(map(len, found.values())) != [1, 1, 1] or len(lm.block_tensors(block, "mlp")) != 3:
        return None
    gate, up, down = (found[part][0] for part in ("gate_proj", "up_proj", "down_proj"))
    module = lm.model.get_submodule(gate.removesuffix(".gate_proj.weight"))
    plain = all(isinstance(getattr(module, part, None), nn.Linear) for part in found)
    act = getattr(module, "act_fn", None)
    return GatedMlp(act, gate, up, down) if plain and callable(act) else None
