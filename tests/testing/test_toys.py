"""The toys of the learning tests: questions, answers and the tokens they are written in."""

from __future__ import annotations

import pytest

from selfdistill.data.rewards import check
from selfdistill.testing import toys


@pytest.mark.parametrize("toy", toys.TOYS, ids=lambda toy: toy.name)
def test_demonstrations_are_right_and_what_is_called_wrong_is_not(toy: toys.Toy) -> None:
    rows = toys.examples(toy, 40, seed=3)
    assert len({row.prompt for row in rows}) == 40
    for row in rows:
        assert row.demonstration is not None
        assert row.wrong is not None
        assert row.checker is not None
        assert check(row.checker, row.demonstration, row).reward == 1.0
        assert check(row.checker, row.wrong, row).reward == 0.0


def test_a_seed_decides_the_questions() -> None:
    first, again, other = (toys.examples(toys.NEW, 20, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert {row.prompt for row in first} != {row.prompt for row in other}
