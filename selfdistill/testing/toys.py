"""Toy tasks and a model that learns them in seconds, to try language recipes without a download.

A question is a letter and five digits; the letter names an operation on the digits. `train_tiny` trains the model on
its prior knowledge, so that each recipe has a task that it is made for:

======  =============================================  ===============================================================
toy     right answer                                   the trained model
======  =============================================  ===============================================================
ECHO    the digits                                     knows it: a skill to keep
MIRROR  9 - d for each digit d                         knows it: a skill to keep
SHIFT   d + 5 (modulo 10) for each digit               knows it: a skill to keep
PICK    9 - d for the first digit, the others as is    takes it for ECHO in half of its answers
NEW     as MIRROR                                      takes it for d + 1, but copies an answer from a context; its
                                                       demonstrations end with "!", which is not the model's way
======  =============================================  ===============================================================

A context is the question with an answer beside it, `EXAMPLE` for demonstrations and `SOLUTION` for plain answers. The
model also learns to go on from beginnings that are wrong, as students' are, with the digit that belongs there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..data.examples import Example, write_rows
from ..data.prompts import Prompts, of_examples
from ..data.rewards import Checker
from ..errors import DataError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DIGITS = 5


STYLE = "{c}!"  # how demonstrations write an answer, and the model does not


EXAMPLE = "{x}\nExample: {c}"


SOLUTION = "{x}\nExample: {c}."


TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content }}{% if m.role == 'assistant' %}<e>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


SPECIAL = ("<pad>", "<s>", "<u>", "<a>", "<e>")  # system, user, assistant, end


NEW_TOKENS = DIGITS + 3  # room for an answer, what a demonstration adds, and the end


def same(digits: str) -> str:
    """The digits."""
    return digits


def mirrored(digits: str) -> str:
    """9 - d for each digit.

    >>> mirrored("40712")
    '59287'
    """
    return "".join(str(9 - int(d)) for d in digits)


def raised(digits: str) -> str:
    """d + 1 (modulo 10) for each digit.

    >>> raised("40919")
    '51020'
    """
    return "".join(str((int(d) + 1) % 10) for d in digits)


def shifted(digits: str) -> str:
    """d + 5 (modulo 10) for each digit.

    >>> shifted("40712")
    '95267'
    """
    return "".join(str((int(d) + 5) % 10) for d in digits)


def first_mirrored(digits: str) -> str:
    """9 - d for the first digit.

    >>> first_mirrored("40712")
    '50712'
    """
    return mirrored(digits[0]) + digits[1:]


@dataclass(frozen=True)
class Toy:
    """One kind of question."""

    name: str
    letter: str
    right: Callable[[str], str]
    style: str = "{c}"  # how a demonstration writes the answer
    checker: str = "exact"
    taken: Callable[[str], str] | None = None  # what the model takes it for
    misread: float = 0.0  # in what share of its answers
    guessed: bool = False  # does the model only guess?
    often: int = 2  # how often it is asked while the model is made

    def question(self, digits: str) -> str:
        """The question about these digits."""
        return f"{self.letter} {digits}"


ECHO = Toy("echo", "c", same)


MIRROR = Toy("mirror", "f", mirrored)


SHIFT = Toy("shift", "s", shifted)


PICK = Toy("pick", "p", first_mirrored, taken=same, misread=0.5)


NEW = Toy("new", "n", mirrored, STYLE, "numeric", guessed=True, often=1)


PRIOR = (ECHO, MIRROR, SHIFT)


TOYS = (*PRIOR, PICK, NEW)


# ---- prompts ---------------------------------------------------------------------------------------


def examples(toy: Toy, rows: int, seed: int = 0) -> list[Example]:
    """Distinct questions of a toy; ``wrong`` is the answer of the model's misreading, or the right one plus 1.

    >>> examples(NEW, 1)[0].prompt, examples(NEW, 1)[0].demonstration
    ('n 40870', '59129!')
    """
    numbers = random.Random(rng.seed(seed, "toy", toy.name)).sample(range(10**DIGITS), rows)
    result = []
    for digits in (f"{number:0{DIGITS}d}" for number in numbers):
        right = toy.right(digits)
        wrong = toy.taken(digits) if toy.taken else raised(right)
        result.append(
            Example(
                (("user", toy.question(digits)),),
                demonstration=toy.style.format(c=right),
                answer=right,
                checker=toy.checker,
                wrong=wrong,
            )
        )
    return result


def prompts(toy: Toy, rows: int = 300, seed: int = 0, **splits: Any) -> Prompts:
    """A toy as prompts; ``splits`` are the arguments of `of_examples`.

    >>> len(prompts(PICK).test)
    60
    """
    return of_examples(examples(toy, rows, seed), toy.name, seed=seed, **splits)


def suite(toys: Iterable[Toy] = PRIOR, rows: int = 100, seed: int = 1) -> Prompts:
    """Questions of several toys, all in the test split: the skills to keep.

    >>> len(suite().test)
    300
    """
    questions = tuple(example for toy in toys for example in examples(toy, rows, seed))
    empty = torch.zeros(0, dtype=torch.int64)
    return Prompts("toys", questions, empty, empty, torch.arange(len(questions)))


def write(data: Prompts, path: Path) -> Path:
    """The prompts as a JSONL file, without their splits."""
    write_rows(data.rows, path)
    return path


# ---- the model and its tokenizer ------------------------------------------------------------------


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise DataError("language models need transformers; pip install 'selfdistill[language]'") from None
    return transformers


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and a chat template: ``<u>question<a>answer<e>``.

    Raises:
        DataError: transformers is missing.

    >>> made = tokenizer()
    >>> made.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    '<u>Hi<a>'
    """
    transformers = _transformers()
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokens: PreTrainedTokenizerFast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<e>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokens.chat_template = TEMPLATE
    return tokens


def untrained(seed: int = 0, hidden: int = 64, layers: int = 2) -> LlamaForCausalLM:
    """A small Llama for the bytes of `tokenizer`; its weights are a function of the seed.

    Raises:
        DataError: transformers is missing.
    """
    transformers = _transformers()
    config = transformers.LlamaConfig(
        vocab_size=256 + len(SPECIAL),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=256 + SPECIAL.index("<e>"),
        pad_token_id=256 + SPECIAL.index("<pad>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed(seed, "toy model"))
        model: LlamaForCausalLM = transformers.LlamaForCausalLM(config)
    return model


def save(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, folder: Path) -> Path:
    """A folder that plain transformers loads."""
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


# ---- training --------------------------------------------------------------------------------------


class _Row(NamedTuple):
    text: str  # question and answer, as the model reads them
    led_astray: bool  # are digits of the answer replaced in what it reads?


@dataclass(frozen=True)
class _Course:
    """The training rows of the model's prior knowledge."""

    toys: Sequence[Toy]
    example: str
    solution: str

    def row(self, chance: random.Random) -> _Row:
        """Three rows in five are plain; the others have an answer in their context, whatever the letter says."""
        digits, without_context = _number(chance), chance.random() < 0.6
        toy = chance.choices(self.toys, [toy.often for toy in self.toys] if without_context else None)[0]
        if without_context:
            rule = toy.taken if toy.taken and chance.random() < toy.misread else toy.right
            text = _number(chance) if toy.guessed else rule(digits)
            return _Row(f"<u>{toy.question(digits)}<a>{text}<e>", False)
        answer = _number(chance)
        if toy.misread < 1 and toy.taken and chance.random() < 0.5:  # what siblings will have said
            answer = chance.choice([toy.taken, toy.right])(digits)
        with_demonstration = chance.random() < 0.5
        context = self.example if with_demonstration else self.solution
        prompt = context.format(x=toy.question(digits), c=STYLE.format(c=answer) if with_demonstration else answer)
        return _Row(f"<u>{prompt}<a>{answer}<e>", chance.random() < 0.5)


def _number(chance: random.Random) -> str:
    return f"{chance.randrange(10**DIGITS):0{DIGITS}d}"


def train_tiny(
    toys: Sequence[Toy] = TOYS,
    steps: int = 500,
    seed: int = 0,
    *,
    example: str = EXAMPLE,
    solution: str = SOLUTION,
    batch: int = 32,
    lr: float = 5e-3,
    hidden: int = 64,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model that the toys are made for, and its tokenizer: plain cross-entropy on answers, a function of the seed.

    ``example`` and ``solution`` are the contexts that it learns to copy from, with {x} for the question and {c} for a
    demonstration (in `STYLE`) or an answer.

    Raises:
        DataError: transformers is missing.
    """
    chance = random.Random(rng.seed(seed, "toy rows"))
    rows = [_Course(toys, example, solution).row(chance) for _ in range(steps * batch)]
    return _trained(rows, seed, batch, lr, hidden)


def train_on(
    texts: Sequence[str], seed: int = 0, *, batch: int = 32, lr: float = 5e-3, hidden: int = 64
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model that has learnt the last answer of each of these conversations, once, and its tokenizer.

    Args:
        texts: conversations as `TEMPLATE` writes them, such as ``<u>2 + 2<a>4<e>``.
        seed: of the weights.
        batch: conversations a step.
        lr: the highest learning rate.
        hidden: width of the model.

    Raises:
        DataError: transformers is missing.

    >>> model, tokens = train_on(["<u>ping<a>pong<e>"] * 320, batch=8)
    >>> answers(model, tokens, [Example((("user", "ping"),))], temperature=0.0)
    ['pong']
    """
    return _trained([_Row(text, False) for text in texts], seed, batch, lr, hidden)


def _trained(
    rows: Sequence[_Row], seed: int, batch: int, lr: float, hidden: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokens, model = tokenizer(), untrained(seed, hidden)
    steps = -(-len(rows) // batch)
    inputs, targets = _encoded(rows, tokens, rng.seed(seed, "toy digits"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, max(0.02, 1 - step / steps))
    )
    model.train()
    for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
        width = int((y >= 0).any(0).nonzero().max()) + 1
        logits = model(input_ids=x[:, :width], use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), y[:, 1:width].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), tokens  # type: ignore[no-untyped-call]


def _encoded(rows: Sequence[_Row], tokens: PreTrainedTokenizerFast, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (rows, tokens) each; targets are -100 everywhere but at the last answer."""
    inputs = tokens([row.text for row in rows], padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    begun = inputs == tokens.convert_tokens_to_ids("<a>")
    answer = (begun.cumsum(1) == begun.sum(1, keepdim=True)) & ~begun & (inputs != tokens.pad_token_id)
    targets = torch.where(answer, inputs, -100)
    replaced = torch.tensor([row.led_astray for row in rows])[:, None] & answer & (inputs != tokens.eos_token_id)
    generator = torch.Generator().manual_seed(seed)
    replaced &= torch.rand(inputs.shape, generator=generator) < 0.3
    digits = torch.tensor(tokens.convert_tokens_to_ids(list("0123456789")))
    return torch.where(replaced, digits[torch.randint(10, inputs.shape, generator=generator)], inputs), targets


# ---- asking ----------------------------------------------------------------------------------------


@torch.no_grad()
def answers(
    model: Any,
    tokens: Any,
    questions: Sequence[Example],
    context: str | None = None,
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """The model's completions; a ``context`` template puts each example's demonstration (or answer) in the prompt."""
    contents = [
        row.prompt if context is None else context.format(x=row.prompt, c=row.demonstration or row.answer)
        for row in questions
    ]
    texts = [
        tokens.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in contents
    ]
    batch = tokens(texts, padding=True, padding_side="left", return_tensors="pt")
    options = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed(seed, "toy answers"))
        tokens_out = model.generate(**batch, **options, max_new_tokens=NEW_TOKENS)
    return list(tokens.batch_decode(tokens_out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


def accuracy(
    model: Any,
    tokens: Any,
    questions: Sequence[Example],
    context: str | None = None,
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> float:
    """The mean reward of `answers` by the examples' own checkers."""
    texts = answers(model, tokens, questions, context, temperature=temperature, seed=seed)
    checkers = {spec: Checker(spec) for spec in {row.checker for row in questions if row.checker}}
    rewards = [checkers[row.checker or ""](text, row).reward for text, row in zip(texts, questions, strict=True)]
    return sum(rewards) / len(rewards)
