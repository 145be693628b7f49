"""Views are values that name rows and augmentations; what makes no sense is refused by name."""

from __future__ import annotations

import pytest

from selfdistill.errors import RecipeError
from selfdistill.testing.conformance import check_value
from selfdistill.views import AUGMENT, ROWS, View, Views, overlapping, pairs, two, weak_strong


@pytest.mark.parametrize("views", [Views(), two(), two("all", "strong"), pairs(), overlapping(), weak_strong(3)])
def test_views_are_values(views):
    """Frozen, hashable, equal, and their repr reads back."""
    check_value(views)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("augment", AUGMENT)
def test_every_named_look_exists(rows, augment):
    """All documented rows and augmentations are accepted."""
    assert View("x", rows, augment).rows == rows


@pytest.mark.parametrize("options", [{"rows": "some"}, {"augment": "medium"}])
def test_an_unknown_name_is_refused_with_the_known_ones(options):
    """The message lists what there is."""
    with pytest.raises(RecipeError, match=r"labelled|weak") as caught:
        View("x", **options)
    assert next(iter(options.values())) in str(caught.value)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_a_ratio_counts_rows(ratio):
    """No unlabelled rows for each labelled one is not a ratio."""
    with pytest.raises(RecipeError, match="above 0"):
        weak_strong(ratio)


def test_two_sets_of_rows_make_no_epoch():
    """An epoch passes over one set; labelled rows beside all rows would be drawn twice over."""
    with pytest.raises(RecipeError, match="all and labelled"):
        Views((View("x", "labelled"), View("u", "all")))


def test_who_needs_unlabelled_rows():
    """Unlabelled and admitted rows are needed; all rows may be labelled ones."""
    assert weak_strong().need_unlabelled()
    assert Views((View("x", "union"),)).need_unlabelled()
    assert Views((View("x", "chosen"),)).need_unlabelled()
    for views in (Views(), two("all"), pairs(), overlapping()):
        assert not views.need_unlabelled()


def test_what_each_method_looks_at():
    """The named views: two of the same rows, a partner, a weak and a strong one."""
    assert [(look.name, look.rows) for look in two("all").views] == [("x", "all"), ("other", "all")]
    assert [(look.name, look.rows) for look in pairs().views] == [("x", "labelled"), ("pair", "pair")]
    assert [(k.name, k.rows, k.augment) for k in weak_strong().views] == [
        ("labelled", "labelled", "default"), ("weak", "unlabelled", "default"), ("strong", "unlabelled", "strong"),
    ]  # fmt: skip


def test_a_view_hides_parts_of_another_one_of_the_same_rows():
    """Which one and how much belong together."""
    check_value(View("y", "all", "crop", hidden=0.3, of="x"))
    for options in ({"hidden": 0.3}, {"of": "x"}, {"of": "x", "hidden": 1.0}, {"of": "x", "hidden": -0.1}):
        with pytest.raises(RecipeError, match="hides a share"):
            View("y", **options)
    check_value(View("y", "all", "crop", hidden=0.3, of="x", spread=0.2, unmasked=0.5))
    for share, spread, unmasked in (
        (0.3, 0.4, 0.0),
        (0.3, -0.1, 0.0),
        (0.3, 0.0, 1.0),
        (0.3, 0.0, -0.1),
        (0.9, 0.2, 0.0),
    ):
        with pytest.raises(RecipeError, match="spread lies in"):
            View("y", hidden=share, of="x", spread=spread, unmasked=unmasked)
    with pytest.raises(RecipeError, match="'y' hides nothing; leave spread and unmasked out"):
        View("y", unmasked=0.5)
    with pytest.raises(RecipeError, match="anew each time; leave fixed out"):
        View("y", hidden=0.3, of="x", fixed=2)
    hiding = View("y", hidden=0.3, of="x")
    for looks in (
        (hiding,), (View("x", "all"), View("y", "unlabelled", hidden=0.3, of="x")), (hiding, View("x")),
        (View("x", augment="weak"), hiding),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match="'y' hides parts of view 'x'"):
            Views(looks)
