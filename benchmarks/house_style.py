"""Questions to be answered in a house style, with demonstrations, and a suite of plain questions that must not suffer.

    python -m benchmarks.house_style FOLDER      writes style.jsonl and plain.jsonl there

The style is "Answer: X. (Source: common knowledge)". In style.jsonl a completion is right if it has that form and the
right X; in plain.jsonl if X is in it, however it is said. The two ask about different things.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, Russia Moscow, China Beijing, Egypt Cairo, "
    "Greece Athens, Portugal Lisbon, Austria Vienna, Poland Warsaw, Sweden Stockholm, Norway Oslo, Finland Helsinki, "
    "Denmark Copenhagen, Ireland Dublin, Hungary Budapest, Turkey Ankara, Cuba Havana, Peru Lima, Chile Santiago, "
    "Kenya Nairobi, Thailand Bangkok, Vietnam Hanoi, Canada Ottawa, Australia Canberra, Belgium Brussels, India Delhi, "
    "Iran Tehran, Iraq Baghdad, Ukraine Kyiv, Romania Bucharest, Bulgaria Sofia, Argentina Buenos Aires"
)
OPPOSITES = (
    "hot cold, big small, up down, fast slow, light dark, open closed, day night, old young, happy sad, hard soft, "
    "rich poor, wet dry, full empty, near far, early late, high low, left right, strong weak, long short, loud quiet, "
    "clean dirty, sweet sour, good bad, first last, inside outside, love hate, war peace, win lose, push pull"
)
YOUNG = "cat kitten, dog puppy, cow calf, horse foal, sheep lamb, hen chick, duck duckling, frog tadpole, pig piglet"
COLOURS = (
    "a banana yellow, grass green, snow white, coal black, a ripe tomato red, a clear sky blue, an orange orange, "
    "milk white, a lemon yellow, a crow black, blood red, a frog green, a ripe strawberry red, the sun yellow"
)
NUMBERS = (
    "days in a week seven, months in a year twelve, legs of a spider eight, sides of a triangle three, "
    "hours in a day twenty-four, legs of a dog four, wheels of a bicycle two, minutes in an hour sixty, "
    "sides of a square four, continents on Earth seven, legs of an insect six, players in a football team eleven"
)


def pairs(text: str, tail: int = 1) -> list[tuple[str, str]]:
    """ "a banana yellow, ..." -> ("a banana", "yellow"), ...; the answer is the last ``tail`` words."""
    found = []
    for item in text.split(", "):
        words = item.split()
        cut = len(words) - (2 if "Buenos" in words else tail)
        found.append((" ".join(words[:cut]), " ".join(words[cut:])))
    return found


def questions() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Those of the style, and the plain ones."""
    capitals = [(f"What is the capital of {a}?", b) for a, b in pairs(CAPITALS)]
    opposites = [(f"What is the opposite of {a}?", b) for a, b in pairs(OPPOSITES)]
    young = [(f"What is a young {a} called?", b) for a, b in pairs(YOUNG)]
    colours = [(f"What colour is {a}?", b) for a, b in pairs(COLOURS)]
    numbers = [(f"How many {a.replace(' of ', ' has ') if ' of ' in a else a}?", b) for a, b in pairs(NUMBERS)]
    plain = capitals[::4] + opposites[::4] + colours[::4] + young[::4] + numbers[::4]
    return [q for q in capitals + opposites + young + colours + numbers if q not in plain], plain


def main(folder: str) -> None:
    style, plain = questions()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": q, "demonstration": f"Answer: {a}. (Source: common knowledge)", "checker": "regex",
         "answer": rf"(?i)^\s*Answer:\s*{a}\.\s*\(Source: common knowledge\)\s*$"} for q, a in style
    ]  # fmt: skip
    keep = [{"prompt": q, "answer": rf"(?i)\b{a}\b", "checker": "regex"} for q, a in plain]
    for name, lines in (("style", rows), ("plain", keep)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        print(f"{place / name}.jsonl: {len(lines)} prompts")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="where the two files are written")
    main(parser.parse_args().folder)
