"""A small BERT of one's own: its vocabulary, its shape, and what it says in a sentence's gap."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.masked_data import MASK, Cloze
from factedit.holding import holding
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)


@dataclass(frozen=True, slots=True)
class Shape:
    """`vocabulary`: word pieces at most, but for objects, each of which is a token of its own."""

    layers: int = 4
    width: int = 192
    heads: int = 4
    vocabulary: int = 7000


def build_tokenizer(texts: Sequence[str], objects: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """WordPiece as bert-base-uncased's, trained on `texts`; every object is one token, as in LAMA."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    seen = sorted(set(normalizer.normalize_str("".join(texts))) - set(" "))
    # The trainer numbers what it is not given in an order of its own, which is another each time.
    given = [*SPECIAL, *seen, *(f"##{character}" for character in seen)]
    trained = Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trained.train_from_iterator(
        texts, WordPieceTrainer(vocab_size=size, special_tokens=given, show_progress=False)
    )
    pieces = sorted(trained.get_vocab().items(), key=lambda piece: piece[1])
    words = [word for word, _ in pieces] + [normalizer.normalize_str(name) for name in objects]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}

    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token=MASK,
    )


def build_model(
    tokenizer: PreTrainedTokenizerBase, shape: Shape, seed: int, device: torch.device
) -> LanguageModel:
    """Random weights; no dropout, since what is wanted is that it learns by heart."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config)
    model.to(device)  # type: ignore[arg-type]
    return LanguageModel(model=model, tokenizer=tokenizer, task="masked", device=device)


def examples_of(lm: LanguageModel, asked: Sequence[tuple[str, str]]) -> list[Example]:
    """Sentences with their masks, and the objects that belong there."""
    return [answer_example(lm, sentence, target) for sentence, target in asked]


def right(lm: LanguageModel, asked: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each object is the most probable of all tokens in its mask's place."""
    return holding(lm, examples_of(lm, asked), probability=0.0)


def memorised(lm: LanguageModel, clozes: Sequence[Cloze], targets: Sequence[str] | None = None) -> list[bool]:
    """Whether each fact is right in all its evidence sentences; `targets`: the objects, if not its own."""
    wanted = targets or [cloze.memory.object for cloze in clozes]
    pairs = list(zip(clozes, wanted, strict=True))
    found = iter(right(lm, [(sentence, target) for cloze, target in pairs for sentence in cloze.evidence]))
    return [all(list(islice(found, len(cloze.evidence)))) for cloze in clozes]
