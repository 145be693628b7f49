"""The loop of `auto()`: who is chosen, who is left out, and what is kept."""

from __future__ import annotations

import pytest

from selfdistill.errors import NotFiniteError
from selfdistill.training.shortlist import Trial, choose, try_each, visible

ORDER = ["plain()", "early", "elr()", "bake()"]


def test_of_equals_the_simpler_one_is_chosen_in_whatever_order_they_are_trained() -> None:
    trials = [Trial("bake()", [0, 1, 0]), Trial("elr()", [1, 0, 0]), Trial("plain()", [1, 1, 0])]
    assert trials[choose(trials, ORDER.index)].name == "elr()"


def test_a_loss_that_is_no_number_is_never_chosen() -> None:
    assert choose([Trial("plain()", [1.0, 1.0]), Trial("elr()", [0.0, float("nan")])], ORDER.index) == 0


def test_early_stopping_is_judged_on_the_rows_that_did_not_choose_its_epoch() -> None:
    plain, elr = Trial("plain()", [1, 1, 1, 1]), Trial("elr()", [0, 0, 1, 0])
    assert choose([plain, Trial("early", [0, 0], rows=[2, 3]), elr], ORDER.index) == 1
    assert choose([plain, Trial("early", [1, 0], rows=[2, 3]), elr], ORDER.index) == 2, "not better on these rows"


def test_a_candidate_that_fails_is_left_out_and_told_but_not_the_first() -> None:
    def train(number: int) -> tuple[list[Trial], str]:
        if number == 1:
            raise NotFiniteError("the loss is nan")
        return [Trial(ORDER[number], [1 - number / 4])], f"training {number}"

    said: list[str] = []
    choice = try_each(ORDER, train, ORDER.index, said.append)
    assert choice.left_out == ["early: the loss is nan"]
    assert [trial.name for trial in choice.trials] == ["plain()", "elr()", "bake()"]
    assert (choice.winner.name, choice.kept) == ("bake()", {0: "training 0", 2: "training 3"})
    assert "candidate 3 of 4, elr(), is trained, about" in said[2]
    with pytest.raises(NotFiniteError):
        try_each(ORDER[1:], lambda number: train(number + 1), ORDER.index, said.append)


def test_the_smallest_difference_that_rows_can_show_is_told() -> None:
    assert visible(200, "accuracy") == "200 validation rows; a difference below 2.5 points may be chance"
    assert "no difference for certain" in visible(3, "accuracy")
    assert "spread" in visible(200, "mse")
