"""``selfdistill theory``: every identity is measured, would fail if it were wrong, and is drawn."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill import theory
from selfdistill.theory import checks
from selfdistill.theory.checks import mixing_weight, repetition, ridge
from tests.report.test_report import drawings, loads_nothing
from tests.terminal import invoke
from tests.test_package import loaded_by


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[dict[str, Any], str]:
    """What the command prints as JSON, and the page that it draws."""
    file = tmp_path_factory.mktemp("theory") / "theory.html"
    done = invoke("theory", "--json", "--plot", file)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), file.read_text()


def test_every_identity_holds_and_t1_to_t19_are_all_there(page):
    found, _ = page
    assert found["ok"] is True
    assert {name for one in found["identities"] for name in re.findall(r"^T\d+", one["name"])} == {
        f"T{n}" for n in range(1, 20)
    }
    names = [one["name"] for one in found["identities"]]
    assert len(set(names)) == len(names) == len(checks.IDENTITIES)
    for one in found["identities"]:
        assert one["ok"], one
        assert 0 <= one["deviation"] <= one["tolerance"]
        assert one["statement"]
        assert one["source"]
        assert one["tolerance"] <= 1e-8 or one["kind"] == "Monte Carlo" or one["name"] == "temperature limit"


def test_the_page_draws_the_laws_offline_and_names_every_identity(page):
    found, text = page
    assert len([one for one in drawings(text) if "key" not in one.get("class", "")]) == 6
    assert loads_nothing(text)
    for words in ("golden ratio", "best ridge", "stop", "bound", *(one["name"] for one in found["identities"])):
        assert words in text


def test_a_wrong_form_is_told_and_the_exit_code_is_1(monkeypatch):
    def wrong(rng: np.random.Generator) -> float:
        return float("inf")

    first = checks.IDENTITIES[0]
    monkeypatch.setattr(checks, "IDENTITIES", (dataclasses.replace(first, measure=wrong), first))
    done = invoke("theory", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [one["ok"] for one in found["identities"]] == [False, True]
    assert found["identities"][0]["deviation"] is None
    done = invoke("theory")
    assert done.exit_code == 1
    assert "FAILS T1" in done.stdout
    assert "1 of 2 identities hold" in done.stdout


#: a closed form, how it may be mistaken, and the check that must notice
MISTAKES = [
    ("repeated_ridge", "power_law", lambda f: lambda X, y, lam, k: f(X, y, lam, k + 1), ridge.power),
    ("repeated_ridge", "rounds_to_collapse", lambda f: lambda *a: f(*a) + 1, ridge.collapse),
    ("repeated_ridge", "degrees_of_freedom", lambda f: lambda X, lam, k: f(X, lam, 0), ridge.freedom),
    ("repeated_ridge", "fixed_point", lambda f: lambda X, y, lam, xi: f(X, y, lam, xi * 0.99), ridge.fixed),
    ("multi_step", "step_weights", lambda f: lambda xis: f(xis[::-1]), ridge.reparametrised),
    ("multi_step", "best_steps", lambda f: lambda *a: f(*a) * 1.01, ridge.oracle),
    ("multi_step", "equal_values_penalty", lambda f: lambda *a: f(*a) * 1.1, ridge.equal_values),
    ("identities", "peers_fixed_point", lambda f: lambda a, b, y, xi: f(a, b, y, -xi), ridge.peers),
    ("mixing_weight", "held_out_weight", lambda f: lambda y, t, s: f(y, s, t), mixing_weight.held_out),
    ("mixing_weight", "risk_weight", lambda f: lambda *a: -f(*a), mixing_weight.sign),
    ("mixing_weight", "risk_gain", lambda f: lambda *a: 2 * f(*a), mixing_weight.gain),
    ("mixing_weight", "left_out_weight", lambda f: theory.gcv_weight, mixing_weight.refitted),
    ("mixing_weight", "noise_weight", lambda f: lambda s, a, v, lam: f(s, a, v**0.5, lam), mixing_weight.noisy),
    ("mixing_weight", "turning_noise", lambda f: lambda *a: 1.01 * f(*a), mixing_weight.ordered),
    ("repetition", "accumulated_error", lambda f: theory.accumulated_bound, repetition.bounded),
    ("repetition", "mixing_variance", lambda f: lambda w, noise=1.0: f(w**2, noise), repetition.golden),
]


@pytest.mark.parametrize(("module", "name", "mistaken", "check"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_the_checks_notice_mistakes(monkeypatch, module, name, mistaken, check):
    home = __import__(f"selfdistill.theory.{module}", fromlist=[name])
    assert check(np.random.default_rng(0)) <= 1e-8
    monkeypatch.setattr(home, name, mistaken(getattr(home, name)))
    assert not check(np.random.default_rng(0)) <= 1e-8


def test_the_theory_needs_numpy_and_no_torch():
    names = loaded_by("import selfdistill.theory.checks")
    assert "numpy" in names
    assert names & {"torch", "scipy", "sklearn", "pandas"} == set()


def test_everything_public_has_a_doctest_and_says_where_it_is_from():
    for name in sorted(set(theory.__all__) - {"GOLDEN"}):
        said = getattr(theory, name).__doc__
        assert ">>>" in said, name
        if name not in ("mixed_target", "smoother", "softmax", "spectrum", "entropy", "spike_risks"):
            assert "Source:" in said, name


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checks, "IDENTITIES", checks.IDENTITIES[:1])
    done = invoke("theory", "--plot", tmp_path / "nowhere" / "theory.html")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "give another --plot" in done.stderr
