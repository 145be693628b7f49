"""Every recipe: its paper's own choices, and that it trains."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from selfdistill.core.parts import Term, value_at
from selfdistill.core.step import TrainingClock
from selfdistill.errors import DataError, RecipeError
from selfdistill.gates.tokens import AfterTokens, HighEntropy, ImportanceWeight, Product, TeacherConfidence
from selfdistill.language import recipes
from selfdistill.language.completions import Language
from selfdistill.language.contexts import Demonstration, Hint, Instruction, NoContext, SiblingAttempts
from selfdistill.language.recipes import RECIPES
from selfdistill.language.sampling import export
from selfdistill.language.trainer import fit
from selfdistill.losses.chunked.divergences import TokenDivergence
from selfdistill.losses.chunked.sweep import Truncated
from selfdistill.models.causal_lm import Causal
from selfdistill.teachers import Ema
from selfdistill.terms.spans import SpanTerm
from selfdistill.terms.tokens import PerSequence, PolicyGradient, PreferenceTerm, TeacherReturns
from tests.language.tiny import foreigner, prompts, student

# what the papers say, as plain values: teacher, divergence, support, skip, means; source, temperature, top p, top k,
# samples; context; generations, restart; advice
PAPERS: dict[str, dict[str, Any]] = {
    "sft": {"label": "TokenCrossEntropy", "source": "Demonstrations", "generations": 1, "lr": 2e-5,
            "needs": ("demonstration",)},
    "mutual_adapters": {"label0": "Term", "label1": "Term", "peer0_1": "Term", "peer1_0": "Term", "label2": None,
                        "source": "Demonstrations", "epochs": 1, "lora": 16, "lr": 1e-4, "generations": 1,
                        "needs": ("demonstration",)},
    "sdft": {"teacher": "Ema", "rate": 0.01, "divergence": "ForwardKL", "entries": None, "support": None, "skip": 3,
             "mean_over": "sequence", "per": "sequence", "source": "OnPolicy", "samples": 1, "temperature": 1.0,
             "top_p": 1.0, "top_k": 0, "context": "Demonstration", "lr": 2e-5, "clip": 1.0, "batch_size": 32,
             "needs": ("demonstration",)},
    "sdft_2024": {"label": "TokenCrossEntropy", "source": "OncePerGeneration",
             "samples": 1, "threshold": 1.0, "instead": True,
                  "writes_with": "Demonstration", "lora": 8, "lr": 1e-4, "batch_size": 8, "epochs": 2},
    "sdpo": {"teacher": "Ema", "rate": 0.01, "divergence": "JensenShannon", "beta": 0.5, "support": (100, "student"),
             "skip": 0, "mean_over": "token", "source": "OnPolicy", "samples": 8, "temperature": 1.0, "top_p": 1.0,
             "context": "SiblingAttempts", "lr": 1e-5, "batch_size": 32, "needs": ("checker",)},
    "opsd": {"teacher": "Frozen", "divergence": "ForwardKL", "entries": 0.05, "support": None, "skip": 0,
             "mean_over": "token", "source": "OnPolicy", "samples": 1, "temperature": 1.1, "top_p": 0.95, "top_k": 20,
             "max_tokens": 1024, "context": "Demonstration", "lora": 64, "lr": 5e-6, "clip": 0.1, "batch_size": 32,
             "steps": 100, "needs": ("demonstration",)},
    "ssd": {"label": "TokenCrossEntropy", "source": "OncePerGeneration",
             "samples": 1, "temperature": 1.6, "top_p": 0.8, "top_k": 20,
            "threshold": None, "restart": True, "generations": 1, "lr": 5e-6, "needs": ()},
    "opcd": {"teacher": "Frozen", "divergence": "ReverseKL", "support": (100, "student"), "source": "OnPolicy",
             "samples": 1, "temperature": 1.0, "context": "Demonstration"},
    "context_distillation": {"teacher": "Frozen", "divergence": "ForwardKL", "support": None,
             "source": "OncePerGeneration",
                             "context": "Demonstration", "writes_with": "Demonstration"},
    "gkd": {"teacher": "Frozen", "divergence": "JensenShannon", "beta": 0.5, "source": "MixedPolicy", "share": 0.5},
    "gold": {"teacher": "OtherTokens", "distance": "SharedDivergence", "beta": 0.5, "positions": False, "share": 0.5,
             "source": "MixedPolicy", "temperature": 0.9, "top_p": 0.95, "top_k": 0, "needs": ("demonstration",)},
    "uld": {"teacher": "OtherTokens", "distance": "SortedDistance", "positions": True, "weight": 1.5,
            "label": "TokenCrossEntropy", "source": "Demonstrations", "needs": ("demonstration",)},
    "minillm": {"teacher": "Frozen", "divergence": "ReverseKL", "source": "TeacherMixed", "share": 0.2, "weight": 1.0,
                "temperature": 1.0, "top_p": 1.0, "top_k": 0, "per": "token", "support": None},
    "star": {"label": "TokenCrossEntropy", "source": "OncePerGeneration",
             "threshold": 1.0, "rescue": "Hint", "restart": True,
             "generations": 3, "needs": ("answer", "checker")},
    "rest": {"label": "TokenCrossEntropy", "source": "OncePerGeneration",
             "threshold": (0.5, 0.75, 1.0), "restart": False,
             "generations": 3, "needs": ("checker",)},
    "rft": {"label": "TokenCrossEntropy", "source": "OncePerGeneration",
             "temperature": 0.7, "threshold": 1.0, "restart": True,
            "generations": 1, "needs": ("checker",)},
    "spin": {"preferred": "PreferenceTerm", "lam": 0.1, "opponent": "Generation",
             "source": "OncePerGeneration", "samples": 1, "generations": 3, "restart": False,
             "lr": 5e-7, "epochs": 2, "needs": ("demonstration",)},
    "grpo": {"advantage": "PolicyGradient", "ratio": 0.2, "scaled": True, "source": "OnPolicy", "samples": 8,
             "needs": ("checker",)},
    "opsdc": {"teacher": "Ema", "refreshed": 50, "divergence": "ReverseKL", "support": None, "skip": 0,
              "mean_over": "sequence", "source": "OnPolicy", "samples": 1, "temperature": 1.0, "top_p": 1.0,
              "context": "Preface", "lr": 1e-6, "batch_size": 32, "clip": 1.0, "needs": ()},
    "eopd": {"returns": "TeacherReturns", "immediate": True, "cover": "Term", "above": 0.8, "covered": (16, "teacher"),
             "source": "OnPolicy", "samples": 1, "temperature": 1.0, "lr": 3e-6, "batch_size": 128},
    "lsm": {"teacher": "Frozen", "divergence": "ReverseKL", "support": (32, "teacher"), "alone": True,
            "source": "OnPolicy", "samples": 1, "top_p": 0.9, "lr": 2e-6},
    "srpo": {"teacher": "Ema", "rate": 0.01, "divergence": "JensenShannon", "beta": 0.5, "support": (100, "student"),
             "certain": 1.0, "ratio": 0.2, "scaled": True, "routed": "context", "source": "OnPolicy", "samples": 8,
             "context": "SiblingAttempts", "lr": 5e-6, "batch_size": 32, "needs": ("checker",)},
    "gates": {"label": "TokenCrossEntropy", "source": "Consensus", "samples": 8, "agree": 4, "immediate": True,
              "writes_with": "Demonstration", "context": "Demonstration", "weight": 0.1, "batch_size": 32, "epochs": 1,
              "needs": ("demonstration",)},
    "hindsight": {"returns": "TeacherReturns", "immediate": True, "after": 2, "source": "Attempts",
                  "context": "Hindsight", "lr": 2e-6, "clip": 10.0, "epochs": 2, "batch_size": 32,
                  "needs": ("feedback", "wrong")},
    "opsdl": {"returns": "TeacherReturns", "immediate": True, "source": "OnPolicy", "samples": 1,
              "context": "ShortContext", "needs": ("privileged_context",)},
    "sd_zero": {"teacher": "Frozen", "divergence": "ReverseKL", "support": (64, "teacher"), "alone": False,
                "source": "OnPolicy", "samples": 1, "context": "Revision", "lr": 5e-6, "batch_size": 128,
                "needs": ("checker",)},
}  # fmt: skip


MAKE: dict[str, Any] = dict(RECIPES)


def named(value: object) -> str | None:
    return None if value is None else type(value).__name__


def plain(method: Language) -> dict[str, Any]:
    """A method as plain values."""
    found: dict[str, Any] = {name: named(term) for name, term in method.terms.items()} | dict(method.advice)
    source, drawing = method.source, method.sampling
    found |= {"source": named(source), "samples": source.samples, "generations": method.generations,
              "restart": method.restart, "needs": tuple(sorted(method.needs)), "context": named(method.context),
              "threshold": getattr(source, "threshold", None), "rescue": named(getattr(source, "rescue", None)),
              "instead": getattr(source, "instead", None), "share": getattr(source, "share", None),
              "writes_with": named(getattr(source, "context", None))}  # fmt: skip
    if drawing:
        found |= {part: getattr(drawing, part) for part in ("temperature", "top_p", "top_k", "max_tokens")}
    found["agree"] = getattr(source, "agree", None)
    if cover := method.terms.get("cover"):
        assert isinstance(cover, Term)
        assert isinstance(cover.loss, TokenDivergence)
        support = cover.loss.support
        assert isinstance(support, Truncated)
        assert not support.renormalised
        found |= {"above": getattr(cover.gate, "least", None), "covered": (support.k, support.of)}
    term = method.terms.get("distil")
    if isinstance(term, SpanTerm):
        distance = term.distance
        found |= {"teacher": named(term.teacher), "distance": named(distance), "positions": term.positions,
                  "beta": getattr(distance, "beta", None), "weight": term.weight}  # fmt: skip
    elif term:
        assert isinstance(term, Term)
        assert isinstance(term.loss, TokenDivergence)
        loss, gates = term.loss, term.gate.gates if isinstance(term.gate, Product) else (term.gate,)
        teacher = term.teacher
        found |= {
            "teacher": named(teacher),
            "divergence": named(loss.divergence),
            "rate": round(1 - value_at(teacher.decay, TrainingClock()), 12) if isinstance(teacher, Ema) else None,
            "skip": sum(g.first for g in gates if isinstance(g, AfterTokens)),
            "entries": getattr(loss.divergence, "clip", None),
            "beta": getattr(loss.divergence, "beta", None),
            "mean_over": "sequence" if term.reduction == PerSequence() else "token",
            "per": next(g.per for g in gates if isinstance(g, ImportanceWeight)),
            "support": loss.support and (loss.support.k, loss.support.of),
            "alone": isinstance(loss.support, Truncated),
            "refreshed": getattr(getattr(teacher, "decay", None), "steps", None),
            "certain": next((g.beta for g in gates if isinstance(g, TeacherConfidence)), None),
            "quantile": HighEntropy in map(type, gates),
            "labels": "label" in method.terms,
            "contrast": "against" in teacher.reads(term),
        }
    for term in method.terms.values():
        if isinstance(term, PreferenceTerm):
            found |= {"lam": term.lam, "opponent": named(term.teacher)}
        if isinstance(term, PolicyGradient):
            found |= {"ratio": term.clip, "scaled": term.scaled, "routed": term.unless}
        if isinstance(term, TeacherReturns):
            found |= {"immediate": term.immediate, "after": getattr(term.gate, "first", 0), "weight": term.weight}
        if term.teacher is not None and term.teacher.labels:
            found |= {"label": named(term.loss)}
    return found


def test_every_recipe_is_pinned() -> None:
    functions = {name: f for name, f in vars(recipes).items() if inspect.isfunction(f)}
    written = {name for name, f in functions.items() if f.__annotations__.get("return") == "Language"}
    assert written == set(MAKE) == set(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_defaults_are_those_of_the_paper(name: str) -> None:
    found = plain(MAKE[name]())
    assert {key: found.get(key) for key in PAPERS[name]} == PAPERS[name]
    for neutral in ("contrast", "quantile", "labels"):
        assert not found.get(neutral), f"no paper has {neutral}"


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_is_a_value(name: str) -> None:
    one, other = MAKE[name](), MAKE[name]()
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other)
    assert " at 0x" not in repr(one)
    assert one != replace(one, generations=one.generations + 1)


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_has_at_most_twenty_lines(name: str) -> None:
    function = ast.parse(inspect.getsource(MAKE[name])).body[0]
    assert isinstance(function, ast.FunctionDef)
    first = function.body[1]  # after the docstring
    signature = function.body[0].lineno - function.lineno
    assert signature + (function.end_lineno or 99) - first.lineno + 1 <= 20
    assert ast.get_docstring(function)


TEMPLATES = {
    "sdft": "{x}\n\nThis is an example for a response to the question:\n{c}\n\nNow answer with a response of your own, "
    "including the thinking process.",
    "sdft_2024": "Below are an instruction that describes a task along with a reference answer. Using the reference "
    "answer as a guide, write your own response.\n\n### Instruction:\n{x}\n\n### Reference Answer:\n{c}\n\n"
    "### Response:",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_the_papers(name: str) -> None:
    method = MAKE[name]()
    context = method.context if name == "sdft" else method.source.context
    example = replace(prompts(5).rows[0], demonstration="D {prompt} {x}")
    before, after = TEMPLATES[name].split("{c}")
    assert context(example, [], 0) == [("user", before.replace("{x}", example.prompt) + "D {prompt} {x}" + after)]


def test_options_reach_their_parts() -> None:
    assert set(MAKE["sdpo"](grpo=0.25).terms) == {"distil", "advantage"}
    hybrid = MAKE["sdpo"](grpo=0.25).terms
    assert (hybrid["distil"].weight, hybrid["advantage"].weight) == (0.75, 0.25)
    assert named(MAKE["sdpo"](trust=True).terms["distil"].teacher) == "GeometricMixture"
    assert named(MAKE["gkd"]("smollm2").terms["distil"].teacher) == "External"
    assert isinstance(MAKE["gkd"]("smollm2").context, NoContext)
    assert isinstance(MAKE["opcd"]("Rhyme.").context, Instruction)
    assert isinstance(MAKE["opcd"]().context, Demonstration)
    assert isinstance(MAKE["sdpo"]().context, SiblingAttempts)
    assert isinstance(MAKE["star"]().source.rescue, Hint)
    assert set(MAKE["context_distillation"](hard=True).terms) == {"label"}
    with pytest.raises(RecipeError, match="at least 2 samples"):
        fit(student, prompts(20), MAKE["grpo"](samples=1), device="cpu", steps=1)


def renamed(method: Language, name: str) -> Language:
    """The same method, its only term under another name."""
    (term,) = method.terms.values()
    return replace(method, terms={name: term})


def test_a_term_needs_the_same_under_any_name() -> None:
    policy = renamed(MAKE["grpo"](samples=1), "policy")
    assert policy.needs == ("checker",)
    with pytest.raises(RecipeError, match="'policy' compares the samples of a prompt; give at least 2 samples"):
        fit(student, prompts(20), policy, device="cpu", steps=1)
    with pytest.raises(DataError, match="checker"):
        fit(student, prompts(20, checker=None), renamed(MAKE["grpo"](), "policy"), device="cpu", steps=1)
    play = renamed(MAKE["spin"](), "play")
    assert play.needs == ("demonstration",)
    assert play.student_views() == MAKE["spin"]().student_views() == (("x", "other"), ())
    with pytest.raises(DataError, match="demonstration"):
        fit(student, prompts(20, demonstration=None), play, device="cpu", steps=1)


def test_a_preference_learns_from_its_two_views_under_any_name() -> None:
    play = renamed(MAKE["spin"](generations=1, max_tokens=5), "play")
    named = MAKE["spin"](generations=1, max_tokens=5)
    both = [fit(student, prompts(20), m, device="cpu", steps=2, batch_size=4, max_tokens=5, lr=1e-3, audit="off")
            for m in (play, named)]  # fmt: skip
    assert [line["loss"] for line in both[0].history] == [line["loss"] for line in both[1].history]


def lenient(completion: str, answer: str) -> float:
    """About half of all completions are right."""
    return float(len(completion) % 2)


SMALL: dict[str, dict[str, Any]] = {"sdpo": {"samples": 2, "k": 5}, "grpo": {"samples": 2}, "rest": {"samples": 2},
                                    "rft": {"samples": 2}, "srpo": {"samples": 2, "k": 5}, "lsm": {"k": 5},
                                    "gates": {"samples": 2, "agree": 1}}  # fmt: skip
CASES = [(name, 4 if name == "mutual_adapters" else 0) for name in PAPERS] + [
    (name, 4) for name in ("sdft", "sdpo", "opsd", "opsdc", "opsdl", "spin", "star")
]


@pytest.mark.parametrize(("name", "lora"), CASES)
def test_every_recipe_trains(name: str, lora: int, tmp_path: Path) -> None:
    options = SMALL.get(name, {})
    options = options | ({} if name in ("sft", "mutual_adapters", "hindsight", "uld") else {"max_tokens": 5})
    if name in ("gold", "uld"):
        export(foreigner(), tmp_path)
        options = options | {"teacher": str(tmp_path)}
    method = MAKE[name](**options)
    more: dict[str, Any] = {"feedback": "No."} if name == "hindsight" else {}
    data = prompts(30, checker="tests.language.test_recipes:lenient", privileged_context="ab", **more)
    build: Callable[[], Any] = lambda: student(lora)
    begun = build().learning()
    method = replace(method, generations=min(2, method.generations))
    result = fit(build, data, method, device="cpu", steps=2, batch_size=6, max_tokens=5, lr=1e-3, audit="off")
    assert result.steps == 2 * method.generations
    assert all(line["loss"] == line["loss"] for line in result.history)
    assert any(not torch.equal(w, begun[n]) for n, w in cast(Causal, result.model).learning().items())
