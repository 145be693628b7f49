"""An adapter folded into the weights says the same, and leaves no trace."""

from __future__ import annotations

import pytest
import torch

from selfdistill.language.causal import packed
from selfdistill.saving import digest
from tests.language.tiny import shaken, student


def test_merged_weights_say_what_the_adapter_says_and_the_old_ones_come_back() -> None:
    model = shaken(student(lora=4), by=0.3)
    x = packed([([5, 6, 7], [8, 9, 1]), ([10], [11])])
    before, whole = model.look(x), digest(dict(model.named_parameters()))
    with model.merged():
        folded = model.look(x)
        assert digest(dict(model.named_parameters())) != whole
    with model.without_adapter():
        assert float((model.look(x) - before).abs().max()) > 1e-2, "the adapter does nothing"
    torch.testing.assert_close(folded, before, atol=1e-4, rtol=1e-4)
    assert digest(dict(model.named_parameters())) == whole
    torch.testing.assert_close(model.look(x), before, atol=0.0, rtol=0.0)


def test_the_old_weights_come_back_after_an_error() -> None:
    model = shaken(student(lora=4), by=0.3)
    whole = digest(dict(model.named_parameters()))
    with pytest.raises(KeyboardInterrupt), model.merged():
        raise KeyboardInterrupt
    assert digest(dict(model.named_parameters())) == whole
