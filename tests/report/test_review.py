"""The review page: what may ask it, what it writes, and that a keyboard in a browser drives it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from selfdistill.data.decisions import LabelDecision, read_decisions, write_decisions
from selfdistill.data.row_cards import RowCard
from selfdistill.errors import DataError
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.report.review import Review, ReviewRow, ReviewServer, write_static
from tests.browser import axe_source, browser
from tests.terminal import passed, refused

HOSTILE = "<img src=x onerror=document.title='run'>"


def review_of(path: Path, classes: Sequence[str] = ("cat", "dog", "keep", HOSTILE)) -> Review:
    rows = [
        ReviewRow(4, "5", "train", "cat", "dog", 0.1, 0.9),
        ReviewRow(7, "8", "validation", "dog", "cat"),
        ReviewRow(2, "3", "unlabelled", "", ""),
        ReviewRow(1, HOSTILE, "train", HOSTILE, "cat"),
    ]
    asked: list[int] = []

    def cards(ids: Sequence[int]) -> dict[int, RowCard]:
        asked.extend(ids)
        return {row: RowCard(text=HOSTILE, cells=(("size", str(row)),)) for row in ids}

    return Review(rows, list(classes), path, cards, "selfdistill run pets --labels d.csv")


def words(path: Path) -> dict[str, str]:
    return {made.row: made.decision for made in read_decisions(path).values()}


@contextmanager
def served(review: Review) -> Iterator[ReviewServer]:
    with ReviewServer(review) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


# ---- the file of decisions ---------------------------------------------------------------------------


def test_each_decision_is_in_the_file_at_once_and_other_rows_stay(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    write_decisions(file, [LabelDecision("1", "", "cat", "accept", "model"), LabelDecision("3", "", "dog")])
    review = review_of(file)
    for number, word in enumerate(("accept", "drop", "class:keep", "dog")):
        assert review.decide(number, word) == word
        assert words(file)[review.rows[number].name] == word
    assert words(file) == {"1": "accept", "3": "class:keep", "5": "accept", "8": "drop", HOSTILE: "dog"}
    assert review.summary() == "4 of 4 rows decided: 1 accepted, 1 dropped, 2 labelled otherwise"
    assert review.decide(0, "") == review.decide(2, "") == ""
    assert words(file) == {"1": "accept", "3": "", "8": "drop", HOSTILE: "dog"}, "a proposal stays, open again"
    assert [row["decision"] for row in review.describe()["rows"]] == ["", "drop", "", "dog"]


def test_what_cannot_be_decided_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    review = review_of(tmp_path / "d.csv")
    for number, word, said in (
        (0, "cow", "'cow' is no class"), (9, "keep", "none of"), (-1, "keep", "none of"), (2, "accept", "is suggested"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            review.decide(number, word)
    assert not (tmp_path / "d.csv").exists()
    values = review_of(tmp_path / "d.csv", ())
    for word in ("inf", "nan", "wide"):
        with pytest.raises(DataError, match="no finite number"):
            values.decide(0, word)
    assert values.decide(0, "2.5") == "2.5"
    (tmp_path / "d.csv").write_text("no decisions\n")
    with pytest.raises(DataError, match="column 'row' is missing"):
        review.decide(0, "keep")
    assert (tmp_path / "d.csv").read_text() == "no decisions\n"


# ---- who may ask -------------------------------------------------------------------------------------


def test_only_the_page_itself_may_ask(tmp_path: Path) -> None:
    review = review_of(tmp_path / "d.csv")
    with served(review) as server:
        assert server.server_address[0] == "127.0.0.1"
        own, kind = f"/{server.token}/", {"Content_Type": "application/json"}

        def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, None if body is None else json.dumps(body), names)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        decision = {"row": 0, "decision": "keep"}
        assert ask("GET", own)[0] == ask("GET", f"{own}rows")[0] == ask("GET", f"{own}card/0")[0] == 200
        for path in ("/", "/rows", "/x/rows", f"/{server.token[:-1]}/rows", "/%00/rows"):
            assert ask("GET", path)[0] == 403
        assert ask("GET", f"{own}rows", Host="evil.example")[0] == 403
        assert ask("GET", f"{own}rows", Host=f"evil.example:{server.server_port}")[0] == 403
        for path in ("card/99", "card/x", "card/-1", "../run.json", "decide"):
            assert ask("GET", own + path)[0] == 404
        assert ask("POST", f"{own}decide", decision)[0] == 403, "a form of another page has no JSON"
        assert ask("POST", f"{own}decide", decision, **kind, Origin="http://evil.example")[0] == 403
        assert ask("POST", "/x/decide", decision, **kind)[0] == 403
        bad: list[Any] = [{}, [], 3, {"row": True, "decision": "keep"}, {"row": 0, "decision": 3}, {"row": "0"}]
        assert {ask("POST", f"{own}decide", body, **kind)[0] for body in bad} == {400}
        assert not review.path.exists()
        assert ask("POST", f"{own}decide", {"row": 0, "decision": "cow"}, **kind)[0] == 409
        status, text = ask("POST", f"{own}decide", decision, **kind)
        assert (status, json.loads(text)) == (200, {"decision": "keep"})
    assert words(review.path) == {"5": "keep"}


# ---- in a browser ------------------------------------------------------------------------------------


def test_a_keyboard_decides_and_texts_of_the_data_stay_texts(tmp_path: Path) -> None:
    review = review_of(tmp_path / "d.csv")

    def at(number: int) -> str:
        return f"document.body.dataset.row === '{number}'"

    with browser(tmp_path) as page, served(review) as server:
        page.open(server.address)
        page.wait(f"{at(0)} && document.querySelector('#card dl')")
        for step, key in enumerate(("a", " ", "1", "2"), 1):
            page.press(key)
            page.wait(at(step))
        assert words(review.path) == {"5": "accept", "8": "keep", "3": "cat", HOSTILE: "dog"}
        page.wait("!document.querySelector('#end').hidden")
        page.press("u")
        page.wait(f"{at(3)} && document.querySelector('#card').textContent.includes('onerror')")
        assert HOSTILE not in words(review.path)
        assert page.evaluate("document.title") == "Review of labels"
        assert page.evaluate("document.querySelectorAll('#card img').length") == 0
        page.press("ArrowLeft")
        page.wait(at(2))
        page.press("3")
        page.wait(at(3))
        assert words(review.path)["3"] == "class:keep"
        page.press("/")
        page.wait("document.activeElement.id === 'text'")
        for key in ("d", "o", "g"):
            page.press(key)
        page.press("Enter")
        page.wait(at(4))
        assert words(review.path)[HOSTILE] == "dog"
        page.open(f"{server.address}?again")
        page.wait(at(4))
        page.evaluate("document.getElementById('done').click()")
        page.wait("document.getElementById('summary').textContent.includes('You may close this page')")
        assert page.complaints() == []


def test_the_page_has_no_violation_of_axe(tmp_path: Path) -> None:
    axe = axe_source()
    with browser(tmp_path) as page, served(review_of(tmp_path / "d.csv")) as server:
        page.open(server.address)
        page.wait("document.querySelector('#card dl')")
        for dark, width in ((False, 1100), (True, 1100), (False, 390)):
            page.emulate(dark=dark, width=width)
            assert page.violations(axe) == []


def test_a_static_page_works_offline_and_downloads_the_decisions(tmp_path: Path) -> None:
    """From file://, by keyboard: the file is that which a server writes, formulas and rows of others included."""
    classes = ("cat", "dog", "keep", "=1+1")
    served_path, path = tmp_path / "served.csv", tmp_path / "decisions.csv"
    before = [LabelDecision("9", "cat", "dog", "accept", "model"), LabelDecision("8", "dog", "cat", "skip")]
    for place in (served_path, path):
        write_decisions(place, before)
    write_static(review_of(path, classes), tmp_path / "review.html")
    assert words(path) == {"9": "accept", "8": "skip"}, "the file itself stays"
    other = review_of(served_path, classes)
    with browser(tmp_path) as page:
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "down"))
        page.open((tmp_path / "review.html").as_uri())
        page.wait("document.body.dataset.row === '0' && document.querySelector('#card dl')")
        for number, key, word in ((0, "a", "accept"), (2, "4", "class:=1+1"), (3, "2", "dog")):
            page.press(key)
            other.decide(number, word)
            page.wait(f"document.body.dataset.row === '{number + 1}'")
            if number == 0:
                page.press("ArrowRight")
                page.wait("document.body.dataset.row === '2'")
        page.press("ArrowLeft")
        page.wait("document.body.dataset.row === '3'")
        page.evaluate(
            "(document.getElementById('text').value = 'cow', document.getElementById('other').requestSubmit(), 0)"
        )
        page.wait("document.getElementById('fault').textContent.includes('no class of the data')")
        assert page.evaluate("document.title") == "Review of labels"
        page.shot(tmp_path / "static.png")
        page.evaluate("document.getElementById('done').click()")
        page.wait("document.getElementById('summary').textContent.includes('was downloaded')")
        down, end = tmp_path / "down" / "decisions.csv", time.monotonic() + 10
        while not down.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert page.complaints() == []
    assert sorted(down.read_text().splitlines()) == sorted(served_path.read_text().splitlines())
    assert read_decisions(down)


# ---- from a run to the next one ----------------------------------------------------------------------


def test_a_run_is_reviewed_and_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request("digits", labels=100, label_noise=0.3, steps=12, method="plain()")
    Run.create(request, "r").execute(warn=lambda line: None)
    review = Run.open("r").review(top=6)
    assert len(review.rows) == 6
    assert all(review.card(number).picture.startswith("data:image/png") for number in range(6))
    assert review.decide(0, "accept") == "accept"
    assert review.decide(1, "drop") == "drop"
    args = ("digits", "--labels", 100, "--label-noise", 0.3, "--steps", 12, "--method", "plain()", "--quiet")
    again = passed("run", *args, "--labels", "r/decisions.csv", "--out", "s", "--json").stdout
    counts = json.loads(again)["data"]["rows"]
    assert counts["labelled"] + counts["audit"] == 199, "one of them was dropped"
    assert Run.open("r").review(top=6).describe()["rows"][0]["decision"] == "accept"
    assert "is no run folder" in refused("review", "nowhere")
    assert "another --out" in refused("review", "r", "--out", "nowhere/d.csv")
    assert "6 rows; open it in a browser" in passed("review", "r", "--static", "--top", 6).stdout
    page = Path("r/review.html").read_text()
    assert page.count('"picture": "data:image/png') == 6
    assert "http" not in page.replace("http-equiv", ""), "it asks nobody"
