"""Random models of every shape we claim to edit, small enough to be built in a test."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Punctuation, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from factedit.models import LanguageModel, load_model

LAYERS = 3
WIDTH, INNER = 32, 64
SPECIAL = ("<unk>", "<pad>", "<eos>", "<cls>", "<sep>", "<mask>")
CITIES = ("Paris", "Rome", "Berlin", "Madrid", "Vienna", "Oslo")
COUNTRIES = ("France", "Italy", "Germany", "Spain", "Austria", "Norway")
WORDS = (
    *CITIES,
    *COUNTRIES,
    *["The", "capital", "of", "is", "lies", "in", "river", "people", "speak", "New", "York", "."],
)
BYTE_PAIRS = 400
PROMPT = "The capital of {} is"

_SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": _SIZES["vocab_size"],
    "n_embd": WIDTH,
    "n_inner": INNER,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 2,
}

CAUSAL: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{**_GROUPED, "vocab_size": BYTE_PAIRS})),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=8)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_GROUPED, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(
        # Its blocks' outputs are normed, so that they can only win over small embeddings.
        Gemma2Config(
            **{**_GROUPED, "initializer_range": 0.05},
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=32,
        )
    ),
}
MASKED: Mapping[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**_SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**_SIZES)),
}
SHAPES = (*CAUSAL, *MASKED)


def write_tiny_model(folder: Path, shape: str, seed: int = 0) -> Path:
    """Save a random model of a shape, with a tokenizer that knows `WORDS`, as a Hugging Face folder."""
    torch.manual_seed(seed)
    model = {**CAUSAL, **MASKED}[shape]()
    model.save_pretrained(folder)
    # transformers reads a Qwen2's tokenizer as byte pairs, whatever the folder says.
    tokenizer = _byte_pairs() if shape == "qwen2" else _words(masked=shape in MASKED)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(folder: Path, shape: str) -> LanguageModel:
    return load_model(write_tiny_model(folder, shape), device="cpu")


def without_attention(lm: LanguageModel, block: int) -> None:
    """In this block of a Llama's kind tokens do not see each other from now on."""

    def blind(_: nn.Module, __: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.zeros_like(output[0]), *output[1:])

    lm.model.get_submodule(f"{lm.blocks_name}.{block}.self_attn").register_forward_hook(blind)


def with_its_own_forward(block: nn.Module) -> Callable[..., Any]:
    """The forward pass that a block is given as one on a device of its own is (accelerate does it)."""
    plain = block.forward

    def forward(*args: Any, **named: Any) -> Any:
        return plain(*args, **named)

    block.forward = forward
    return forward


def _words(*, masked: bool) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    if not masked:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
        )
    backend.post_processor = TemplateProcessing(
        single="<cls> $A <sep>",
        special_tokens=[(token, vocabulary[token]) for token in ("<cls>", "<sep>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<cls>",
        sep_token="<sep>",
        mask_token="<mask>",
    )


def _byte_pairs() -> PreTrainedTokenizerFast:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=BYTE_PAIRS,
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
