"""What the tests of bad input and bad runs share, beside the fixtures in conftest."""

from __future__ import annotations

#: The harmless equivalent of an attack: a pickle that would create a file called "pwned" if anything unpickled it.
PICKLES = {
    "protocol 0": b"cbuiltins\nopen\n(S'pwned'\nS'w'\ntR.",
    "protocol 4": b"\x80\x04\x8c\x08builtins\x8c\x04open\x93\x8c\x05pwned\x8c\x01w\x86R.",
}


#: A run that stops in its second epoch: one sample's loss is no number then.
CUT = ("run", "digits", "--method", "ps_kd()", "--epochs", 2, "--batch-size", 300, "--model", "odd.py:wrong(how='nan')",
       "--save-steps", 2)  # fmt: skip
