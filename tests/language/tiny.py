"""A Llama of two layers over single characters, its tokenizer and prompts, made on the spot; and what the formulas of
the papers say of it, one row at a time, in float64, with plain transformers alone."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfdistill.core.parts import Gate, Teacher, Term
from selfdistill.core.step import Batch, Rows
from selfdistill.data.examples import Example
from selfdistill.data.prompts import Prompts, of_examples
from selfdistill.gates.tokens import AfterTokens, HighEntropy, ImportanceWeight, Product
from selfdistill.language.sampling import export
from selfdistill.losses.chunked.definitions import Divergence, ForwardKL
from selfdistill.losses.chunked.divergences import TokenCrossEntropy, TokenDivergence
from selfdistill.losses.chunked.sweep import TopK
from selfdistill.models.causal_lm import Causal, Pretrained, of_model
from selfdistill.teachers import Frozen, Labels
from selfdistill.terms.tokens import PerSequence, PerToken

SPECIAL = ["<pad>", "<eos>", "<u>", "<a>", "<s>"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .:,;!?+-*/=()'#\n"
TEMPLATE = (
    "{% for m in messages %}{% if m['role']=='system' %}<s>{{m['content']}}{% elif m['role']=='user' %}<u>"
    "{{m['content']}}{% else %}<a>{{m['content']}}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>"
    "{% endif %}"
)
EOS, PADDED = 1, 3  # outputs beyond the vocabulary, which have no probability

Pair = tuple[Sequence[int], Sequence[int]]  # prompt, completion


def tokenizer(letters: str = LETTERS, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=SPECIAL[2:]
    )
    made.chat_template = template
    return made


def student(lora: int = 0, seed: int = 0, context: int = 512, template: str | None = TEMPLATE, **more: Any) -> Causal:
    """A model that knows nothing, the same each time."""
    torch.manual_seed(seed)
    words = tokenizer(template=template)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "initializer_range": 0.3, "tie_word_embeddings": True} | more
    config = LlamaConfig(vocab_size=len(words) + PADDED, max_position_embeddings=context, pad_token_id=0,
                         eos_token_id=EOS, bos_token_id=None, **shape)  # fmt: skip
    return of_model(LlamaForCausalLM(config), words, Pretrained("tiny", lora=lora))


FOREIGN_TEMPLATE = (
    "{% for m in messages %}{% if m['role']=='user' %}Q:{{m['content']}}\n{% else %}A:{{m['content']}}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def foreign_tokenizer(texts: Sequence[str] = ("abcd dcba abab cdcd abc bcd 12 34",)) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has learnt pairs of letters, with other special tokens and another template."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    named = ["<|end|>", "<pad>"]
    learn = trainers.BpeTrainer(
        vocab_size=280, special_tokens=named, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    pairs.train_from_iterator(texts, learn)
    made = PreTrainedTokenizerFast(tokenizer_object=pairs, eos_token="<|end|>", pad_token="<pad>")
    made.chat_template = FOREIGN_TEMPLATE
    return made


def foreigner(seed: int = 7, words: PreTrainedTokenizerFast | None = None) -> Causal:
    """A model that knows nothing, with a tokenizer of its own."""
    torch.manual_seed(seed)
    words = words or foreign_tokenizer()
    config = LlamaConfig(
        vocab_size=len(words) + 2, max_position_embeddings=512, pad_token_id=1, eos_token_id=0, bos_token_id=None,
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return of_model(LlamaForCausalLM(config), words, Pretrained("foreign"))


def shaken(model: Causal, by: float = 0.05, seed: int = 1) -> Causal:
    """Its weights that learn, moved: what training would do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.learning().values():
            weight.add_(by * torch.randn(weight.shape, generator=generator).to(weight.dtype))
    return model


def prompts(rows: int = 40, checker: str | None = "exact", seed: int = 0, **more: Any) -> Prompts:
    """Words to be turned round."""
    r = random.Random(seed)
    made = []
    for i in range(rows):
        word = "".join(r.choice("abcd") for _ in range(3))
        known = {"demonstration": word[::-1], "answer": word[::-1], "wrong": word} | more
        made.append(Example((("user", f"{word} {i}?"),), checker=checker, line=i + 1, **known))
    return of_examples(made)


def write_prompts(folder: Path) -> None:
    """p.jsonl, and the folder of the model, as plain transformers load it."""
    lines = [{"prompt": f"{i}+1?", "demonstration": str(i + 1), "answer": str(i + 1)} for i in range(24)]
    text = "".join(json.dumps({**line, "checker": "exact"}) + "\n" for line in lines)
    (folder / "p.jsonl").write_text(text, encoding="utf-8")
    export(student(), folder / "tiny")


def rows_of(pairs: Sequence[Pair]) -> Tensor:
    """(rows, 2, length): ids, and 1 for a prompt, 2 for a completion."""
    length = max((len(p) + len(c) for p, c in pairs), default=0)
    x = torch.zeros(len(pairs), 2, length, dtype=torch.int64)
    for i, (p, c) in enumerate(pairs):
        x[i, 0, : len(p) + len(c)] = torch.tensor([*p, *c])
        x[i, 1, : len(p)], x[i, 1, len(p) : len(p) + len(c)] = 1, 2
    return x


def view_of(pairs: Sequence[Pair], **extra: Tensor) -> Rows:
    """Rows with their completions' tokens as labels, -1 for padding, and the mask of those that exist."""
    longest = max((len(c) for _, c in pairs), default=0)
    y = torch.full((len(pairs), longest), -1)
    for i, (_, c) in enumerate(pairs):
        y[i, : len(c)] = torch.tensor(list(c))
    return Rows(rows_of(pairs), y, None, None, {"mask": y >= 0, **extra})


def batch_of(pairs: Sequence[Pair], rewards: Sequence[float] | None = None, groups: Sequence[int] | None = None,
             drawn: Tensor | None = None, **views: tuple[Sequence[Pair], Sequence[int]]) -> Batch:  # fmt: skip
    """A batch: the student's rows, and for named views some pairs with the rows that they belong to."""
    extra = {"reward": torch.tensor(rewards or [0.0] * len(pairs)),
             "group": torch.tensor(list(groups or range(len(pairs))))}  # fmt: skip
    extra |= {} if drawn is None else {"log_prob": drawn}
    batch = Batch({"x": view_of(pairs, **extra)})
    for name, (others, ids) in views.items():
        batch[name] = view_of(others)._replace(align=torch.tensor(list(ids), dtype=torch.int64))
    return batch


def distil(
    teacher: Teacher = Frozen("context"),  # noqa: B008
    divergence: Divergence = ForwardKL(),  # noqa: B008
    support: TopK | None = None,
    skip: int = 0,
    quantile: float = 0.0,
    cap: float = 2.0,
    per: str = "token",
    mean_over: str = "token",
) -> Term:
    """A term of a teacher with a context."""
    gates: list[Gate] = [ImportanceWeight(cap, per)]
    gates += [AfterTokens(skip)] if skip else []
    gates += [HighEntropy(quantile)] if quantile else []
    reduction = PerToken() if mean_over == "token" else PerSequence()
    return Term(teacher, TokenDivergence(divergence, support), gate=Product(tuple(gates)), reduction=reduction)


def label(mean_over: str = "token") -> Term:
    """The likelihood of the tokens."""
    return Term(Labels(), TokenCrossEntropy(), reduction=PerToken() if mean_over == "token" else PerSequence())


def doubled(model: Causal) -> Any:
    """The Hugging Face model alone, copied, in float64."""
    return copy.deepcopy(model.lm).double().eval()


def spoken(lm: Any, pairs: Sequence[Pair], vocabulary: int) -> list[Tensor]:
    """log p of every token of the vocabulary at every token of each completion: one row at a time, without padding."""
    found = []
    for prompt, said in pairs:
        logits = lm(input_ids=torch.tensor([[*prompt, *said]])).logits[0, :, :vocabulary]
        found.append(torch.log_softmax(logits[len(prompt) - 1 : -1], -1))
    return found


def gradients(loss: Tensor, lm: Any) -> dict[str, Tensor]:
    """By name; the weights that the loss does not reach have none."""
    for weight in lm.parameters():
        weight.grad = None
    loss.backward()
    return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


def agree(model: Causal, loss: Tensor, lm: Any, expected: Tensor, tolerance: float = 2e-5) -> None:
    """The engine's loss and gradients, in float32, are those of the formula in float64."""
    torch.testing.assert_close(loss.double(), expected, atol=tolerance, rtol=tolerance)
    mine, theirs = gradients(loss, model.lm), gradients(expected, lm)
    learning = {n for n, p in model.lm.named_parameters() if p.requires_grad}
    assert set(mine) == learning & set(theirs)
    largest = max(float(theirs[name].abs().max()) for name in mine)
    assert largest > 1e-4, "a gradient of nothing tells nothing"
    for name, g in mine.items():
        torch.testing.assert_close(g.double(), theirs[name], atol=tolerance * max(1.0, largest), rtol=1e-3, msg=name)


Build = Callable[[], Causal]
