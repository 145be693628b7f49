"""Further pre-training of a text encoder on unlabelled texts, with itself as the teacher.

The encoder learns to fill in hidden words of the texts: that is the teacher. Then the *original* encoder learns the
same and, at the first token, what the teacher says.

Source: Lee, Kang, Lee, Hwang, Kawaguchi, Self-Distillation for Further Pre-training of Transformers, ICLR 2023.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..core.objective import Method
from ..core.parts import BaseTerm, StateOf, Tally, Term, TermResult
from ..core.step import Forward
from ..data.dataset import Data
from ..data.text import SETTINGS, Reader, reader
from ..errors import DataError
from ..io.expressions import one_line
from ..io.files import refuse_links, share
from ..io.schema import read_json
from ..io.tensors import write_json
from ..losses import Squared
from ..models import hub, text_encoder
from ..teachers import External
from ..views import View, Views
from .fit import fit

BATCH, EPOCHS = 32, 3


RECORD, WORK = "pretraining.json", "work"


VIEWS = Views((View("masked", "labelled", "weak"), View("whole", "labelled", "none")))


class Filler(nn.Module):
    """An encoder that fills in hidden words: ``feature`` (rows, D) at the first token, ``features`` (rows, length, D).

    A word is said by a fresh layer on its hidden state and the matrix of the input embeddings, which many encoders come
    without a head for: logits = E norm(gelu(W h + b)) + c.
    """

    def __init__(self, body: nn.Module, padding: int) -> None:
        super().__init__()
        embeddings: Any = cast(Any, body).get_input_embeddings()
        vocabulary, width = embeddings.weight.shape
        self.body, self.padding = body, padding
        self.turn = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        ids = text_encoder.trimmed(ids, self.padding)
        hidden = self.body(input_ids=ids, attention_mask=(ids != self.padding).long()).last_hidden_state
        return {"feature": hidden[:, 0], "features": hidden}

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of words, (n, vocabulary), from hidden states (n, D)."""
        embeddings = cast(Any, self.body).get_input_embeddings().weight
        return F.linear(self.turn(hidden), embeddings, self.bias)


@dataclass(frozen=True)
class HiddenWords(BaseTerm):
    """-log p(word) at each word that the view ``masked`` hides and ``whole`` shows, a mean over these words."""

    view: str = "masked"
    head: str = "features"
    weight: float = 1.0

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        hidden = forward.student(self.view, self.head)  # (rows, length, D), as long as the longest row
        masked, whole = (forward.batch[view].x[:, : hidden.shape[1]] for view in ("masked", "whole"))
        hidden_words = masked != whole
        logits = cast(Filler, forward.owner).logits(hidden[hidden_words])
        total = F.cross_entropy(logits.float(), whole[hidden_words], reduction="sum")
        count = hidden_words.sum().to(total.dtype)
        return TermResult(Tally(total, count), count, count)


WORDS = HiddenWords()


def fill() -> Method:
    """Fill in hidden words: L = mean over hidden words of -log p(word).

    >>> list(fill().terms)
    ['words']
    """
    return Method({"words": WORDS}, VIEWS, forward="separate")


def fill_like(weight: float = 1.0) -> Method:
    """Fill in hidden words, and imitate the teacher at the first token.

    Equation::

        L = mean over hidden words of -log p(word) + w mean_i ||h_i - t_i||^2

    h and t are the last hidden states of the first token of text i, whole, of the student and the teacher.

    Source: Lee et al., ICLR 2023, equation 3, with words in place of patches.

    >>> fill_like(0.5).terms["like"].weight
    0.5
    """
    imitation = Term(External(), Squared(), view="whole", head="feature", weight=weight)
    return Method({"words": WORDS, "like": imitation}, VIEWS, forward="separate")


def texts(source: str, text_reader: Reader) -> tuple[Data, int]:
    """The texts of a table's column as data that teach by themselves, and how many were cut.

    Raises:
        DataError: no such table or column, or a model that cannot hide words.
    """
    file, column_texts = text_reader.table(source)
    if text_reader.tokens.mask is None:
        raise DataError("the tokenizer of this model has no mask token, so that no words can be hidden; give another "
                        "model")  # fmt: skip
    x, cut = text_reader.ids(column_texts)
    no_ids, every = torch.zeros(0, dtype=torch.int64), torch.arange(len(x))
    data = Data(
        name=file,
        kind="text",
        task="classify",
        x=x,
        y=torch.full((len(x),), -1),
        classes=(),
        labelled=every,
        unlabelled=no_ids,
        audit=no_ids,
        test=no_ids,
        flips=False,
        augment="none",
        noisy=torch.zeros(len(x), dtype=torch.bool),
        reader=text_reader,
        cut=cut,
    )
    return data, cut


def pretrain(
    source: str,
    column_name: str,
    out: Path,
    *,
    model: str = text_encoder.USUAL,
    weight: float = 1.0,
    seed: int = 0,
    device: str | None = None,
    make: Callable[[str], Any] = lambda name: None,
    warn: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> dict[str, Any]:
    """Train teacher and student, and write the student to ``out`` in the format of transformers; returns the record.

    A run that was cut goes on when it is asked for again. ``settings`` are fields of `Settings`; each of the two
    trainings has 3 epochs where they say nothing.

    Raises:
        DataError: the texts or the model cannot be used, or ``out`` holds something else.
    """
    text_reader = reader(model, column_name)
    data, cut = texts(source, text_reader)
    if data.note:
        warn(data.note)
    name = str(cast(dict[str, Any], text_encoder.named(model))["name"])
    lasting = {} if "steps" in settings else {"epochs": EPOCHS}
    settings = {**SETTINGS, "batch_size": min(BATCH, len(data.x)), **lasting, **settings}
    request = {
        "texts": data.fingerprint,
        "column": column_name,
        "model": model,
        "weight": weight,
        "seed": seed,
        **settings,
    }
    _claim(out, request)

    def build() -> nn.Module:
        body, tokenizer = hub.encoder(name)
        return Filler(text_encoder.bare(body), hub.padding_of(name, tokenizer))

    def train(role: str, method: Method, teacher: nn.Module | None) -> Any:
        own = rng.seed(seed, role) % (1 << 31)  # of its own, or the student would see what the teacher saw
        return fit(build, data, method, out=out / WORK / role, resume=True, external=teacher, device=device, seed=own,
                   progress=make(role), warn=warn, **settings)  # fmt: skip

    teacher = train("teacher", fill(), None)
    student = train("student", fill_like(weight), teacher.model)
    last = {role: result.history[-1]["terms"] for role, result in (("teacher", teacher), ("student", student))}
    record = {"asked": request, "rows": len(data.x), "cut": cut, "steps": teacher.steps + student.steps, "losses": last}
    _write(out, student.model, text_reader, record)
    return record


def _claim(out: Path, request: dict[str, Any]) -> None:
    """Take a folder, or go on in one that was begun for the same.

    Raises:
        DataError: it holds something else, or is finished.
    """
    marker = out / WORK / RECORD
    refuse_links(out)
    if (out / RECORD).exists():
        raise DataError(f"{out} is finished: take it as --model {out}, or give another --out")
    if marker.exists():
        try:
            saved = read_json(marker, {})
        except (OSError, ValueError) as error:
            raise DataError(f"{marker} is damaged ({one_line(error, 80)}); give another --out") from error
        differs = [key for key in request if saved.get(key) != request[key]]
        if differs:
            raise DataError(f"{out} was begun with another {', '.join(differs)}; give another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is no further pre-training; give another --out")
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_json(marker, request)


def _write(out: Path, model: nn.Module, text_reader: Reader, record: dict[str, Any]) -> None:
    """Write the encoder without its head, the tokenizer, and last the record that marks both as complete."""
    with hub.quiet():
        cast(Any, model).cpu().body.save_pretrained(out)
        text_reader.tokenizer.save_pretrained(out)
    share(out)
    write_json(out / RECORD, record)
    shutil.rmtree(out / WORK)
