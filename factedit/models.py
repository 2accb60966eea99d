"""A language model behind one small interface: its tokenizer, its blocks, its head.

Blocks are found by structure, never by a table of model names: whatever causal or masked
language model transformers loads can be edited.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from factedit.cues import Cues
from factedit.spilling import Room

Task = Literal["causal", "masked"]
Parameters = Literal["all", "mlp", "mlp_out", "attention"]


ON_A_GPU = 4
"""Times as many examples in a pass: there launching it takes as long as computing it."""
TEXTS, TEXT = 8192, 512
"""So many texts, of at most so many characters, are not tokenized again: an edit's are asked for at each of
its answer's tokens."""


class ModelError(Exception):
    """A model that can't be loaded or has no structure we can edit; the text is for the operator."""


@dataclass(eq=False)
class LanguageModel:
    """A loaded model, frozen and in evaluation mode.

    `reads`: what a prompt becomes before the model reads it (factedit.context); None: it stays.
    `cues`: which of the neurons that are added to it have fired in the pass under way; None: none are added.
    `room`: what a set of an edit's examples may keep in memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    device: torch.device
    blocks: nn.ModuleList = field(init=False)
    blocks_name: str = field(init=False)
    reads: Callable[[str], str] | None = field(default=None, init=False)
    cues: Cues | None = field(default=None, init=False)
    room: Room = field(default=Room(), init=False)

    def __post_init__(self) -> None:
        self.blocks_name, self.blocks = find_blocks(self.model)
        self.model.eval().requires_grad_(False)
        # Plain greedy decoding: a checkpoint's own sampling or repetition settings are not the model.
        self.model.generation_config = GenerationConfig()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.tokenizer.padding_side = "left" if self.task == "causal" else "right"
        head = self.model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(_rows_contiguous)

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    @property
    def eos_token_id(self) -> int | None:
        return cast("int | None", self.tokenizer.eos_token_id)

    def at_once(self, examples: int) -> int:
        """How many examples to compute in a pass, where `examples` suit a CPU."""
        return examples if self.device.type == "cpu" else ON_A_GPU * examples

    def ids_of(self, text: str) -> tuple[int, ...]:
        """A text's tokens, whatever special ones the tokenizer adds among them."""
        tokenized = self._kept_ids if len(text) <= TEXT else _tokenized
        return tokenized(self.tokenizer, text)

    @cached_property
    def _kept_ids(self) -> Callable[[PreTrainedTokenizerBase, str], tuple[int, ...]]:
        return lru_cache(TEXTS)(_tokenized)  # of nothing that knows the model: it is freed when it is dropped

    @cached_property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Every parameter by name; tied ones once."""
        return dict(self.model.named_parameters())

    def block_of(self, tensor_name: str) -> int | None:
        """The index of the block a tensor lies in; None outside all blocks."""
        prefix = f"{self.blocks_name}."
        if not tensor_name.startswith(prefix):
            return None
        return int(tensor_name[len(prefix) :].split(".", 1)[0])

    def block_tensors(self, block: int, parameters: Parameters) -> list[str]:
        """Names of a block's tensors that an edit of `parameters` may change.

        Matrices under a submodule named for attention are attention's, the others the MLP's;
        `mlp_out` is the MLP matrix that is registered last: the one that writes to the residual.
        `all` adds norms and biases.
        """
        prefix = f"{self.blocks_name}.{block}."
        inside = {name: p for name, p in self.tensors.items() if name.startswith(prefix)}
        if parameters == "all":
            return list(inside)
        matrices = [name for name, p in inside.items() if p.ndim >= 2]
        attention = [name for name in matrices if "att" in name[len(prefix) :].rsplit(".", 2)[0].lower()]
        if parameters == "attention":
            return attention
        mlp = [name for name in matrices if name not in attention]
        return mlp if parameters == "mlp" else mlp[-1:]


def _tokenized(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The model's transformer blocks: the ModuleList that holds the most parameters.

    An outer list holds whatever inner ones (experts, heads) hold, so the outermost wins.

    Raises:
        ModelError: the model has no list of modules.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks that could be edited.")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def task_of(config: Any, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Whether a configuration is of a causal or a masked language model."""
    names = " ".join(config.architectures or ())
    if "MaskedLM" in names or "ForPreTraining" in names:
        return "masked"
    if "CausalLM" in names or "LMHead" in names:
        return "causal"
    return "masked" if tokenizer.mask_token is not None else "causal"


def pick_device(device: str = "auto") -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path, *, device: str = "auto", dtype: torch.dtype | None = None) -> LanguageModel:
    """Load a Hugging Face folder of safetensors, in its own dtype unless told another.

    Raises:
        ModelError: not a causal or masked language model, not safetensors, or a causal one that can't end
            an answer.
    """
    target = pick_device(device)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        task = task_of(config, tokenizer)
        loader = AutoModelForCausalLM if task == "causal" else AutoModelForMaskedLM
        model = loader.from_pretrained(
            folder, config=config, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder.name} can't be loaded as a language model: {error}") from error
    if task == "causal" and tokenizer.eos_token_id is None:
        # An edit is right by its whole answer, which the model has to end itself.
        raise ModelError(
            f"{folder.name} has no end-of-sequence token, so that none of its answers would ever end: name "
            'the one it was trained with as "eos_token" in its tokenizer_config.json.'
        )
    model.to(target)  # type: ignore[arg-type]
    if target.type == "cpu":
        # safetensors maps the file: what happens to the file later (a flipped bit, a truncation) would
        # happen to the weights that were verified.
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone()
    return LanguageModel(model=model, tokenizer=tokenizer, task=task, device=target)


def iter_block_tensors(lm: LanguageModel, blocks: list[int], parameters: Parameters) -> Iterator[str]:
    for block in blocks:
        yield from lm.block_tensors(block, parameters)


def _rows_contiguous(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # A strided last-position slice sends bf16 into a slow batched product (8 times slower on CPU).
    return (args[0].contiguous(), *args[1:])
