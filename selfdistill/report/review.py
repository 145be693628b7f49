"""``selfdistill review``: a local page on which a person decides, by keyboard, about labels that look wrong.

A server on 127.0.0.1 gives the page its rows and writes the file of decisions (`data.decisions`) after every key, whole
or not at all. Nobody else can ask it: each address holds a random token, and requests for another host or from another
page are refused. Texts of the data reach the page as JSON and are shown as texts.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from ..data.decisions import ACCEPT, CLASS, WORDS, LabelDecision, read_decisions, write_decisions
from ..data.row_cards import RowCard
from ..errors import DataError, SelfdistillError
from ..io.expressions import one_line
from ..io.files import escape_formula, write
from ..io.local_address import LocalAddress, open_address
from .layout import STYLE

CARDS = 32  # rows whose cards are made together
BODY = 1 << 16  # bytes of a request


class ReviewRow(NamedTuple):
    """A row to decide about: its sample id, its name in the file of decisions, and what is given and suggested."""

    id: int
    name: str
    split: str
    given: str
    suggested: str
    p_given: float | None = None
    p_suggested: float | None = None


@dataclass
class Review:
    """Rows to decide about and the file of decisions.

    Args:
        rows: the rows, the most doubtful first.
        classes: the classes; empty for values.
        path: the file, which may have other rows too.
        cards: what a person sees of rows, by their sample ids.
        command: the command that trains on the decisions.
        raw: whether cells are written as they are (``--raw-csv``).
    """

    rows: Sequence[ReviewRow]
    classes: Sequence[str]
    path: Path
    cards: Callable[[Sequence[int]], dict[int, RowCard]]
    command: str = ""
    raw: bool = False
    _cards: dict[int, RowCard] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def decisions(self) -> dict[str, LabelDecision]:
        """The decisions in the file, by the name of their row.

        Raises:
            DataError: the file cannot be read.
        """
        if not self.path.exists():
            return {}
        return {decision.row: decision for decision in read_decisions(self.path, self.raw).values()}

    def describe(self) -> dict[str, Any]:
        """The rows with their decisions so far, as the page takes them."""
        made = self.decisions()
        rows = [{**row._asdict(), "decision": made[row.name].decision if row.name in made else ""} for row in self.rows]
        return {"rows": rows, "classes": list(self.classes), "file": str(self.path), "command": self.command}

    def card(self, number: int) -> RowCard:
        """What a person sees of a row; pictures are made a few at a time, and cells of a table all at once."""
        with self._lock:
            row = self.rows[number]
            if row.id not in self._cards:
                ids = [one.id for one in self.rows[number : number + CARDS] if one.id not in self._cards]
                made = self.cards(ids)
                if not any(card.picture for card in made.values()):
                    ids = [one.id for one in self.rows]
                    made = self.cards(ids)
                self._cards |= {id_: made.get(id_, RowCard()) for id_ in ids}
            return self._cards[row.id]

    def decide(self, number: int, word: str) -> str:
        """Write a decision: accept, keep, skip, drop, a label, or nothing, which leaves the row open again.

        Args:
            number: of the row, from 0.
            word: the decision.

        Returns:
            The decision as the file holds it.

        Raises:
            DataError: there is no such row or class, nothing was suggested, or the file cannot be read or written.
        """
        if not 0 <= number < len(self.rows):
            raise DataError(f"row {number} is none of the {len(self.rows)} of this review; load the page again")
        row, text = self.rows[number], word.strip()
        if text not in (*WORDS, ""):
            text = self._label(text)
        if text == ACCEPT and not row.suggested:
            raise DataError(f"row {row.name}: nothing is suggested; choose a label")
        with self._lock:
            made = self.decisions()
            if text or (row.name in made and not row.given):
                made[row.name] = LabelDecision(row.name, row.given, row.suggested, text)
            else:
                made.pop(row.name, None)
            write_decisions(self.path, made.values(), self.raw)
        return text

    def _label(self, text: str) -> str:
        """A class or a value as a decision."""
        if not self.classes:
            try:
                if abs(float(text)) < float("inf"):
                    return text
            except ValueError:
                pass
            raise DataError(f"{one_line(text, 40)!r} is no finite number; write one")
        name = text if text in self.classes else text.removeprefix(CLASS)
        if name not in self.classes:
            raise DataError(f"{one_line(text, 40)!r} is no class of the data")
        return f"{CLASS}{name}" if name.lower() in WORDS else name

    def summary(self) -> str:
        """What was decided so far, in a line."""
        names = {row.name for row in self.rows}
        words = [made.decision for name, made in self.decisions().items() if name in names and made.decision]
        counts = {word: words.count(word) for word in WORDS}
        other = len(words) - sum(counts.values())
        told = {
            "accepted": counts["accept"],
            "kept": counts["keep"],
            "skipped": counts["skip"],
            "dropped": counts["drop"],
        }
        parts = [f"{count} {word}" for word, count in {**told, "labelled otherwise": other}.items() if count]
        return f"{len(words)} of {len(self.rows)} rows decided" + (f": {', '.join(parts)}" if parts else "")


class ReviewServer(ThreadingHTTPServer):
    """The server of a review, on 127.0.0.1 alone."""

    daemon_threads = True

    def __init__(self, review: Review, place: LocalAddress | None = None) -> None:
        place = place or open_address()
        self.review, self.token, self.nonce = review, place.token, secrets.token_urlsafe(12)
        self.address = place.url
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = place.socket
        self.server_name, self.server_port = "127.0.0.1", place.socket.getsockname()[1]


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "selfdistill", ""

    def do_GET(self) -> None:
        place = self._place()
        if place == "":
            self._answer(HTTPStatus.OK, _page(self.server.nonce), "text/html")
        elif place == "rows":
            self._reply(self.server.review.describe)
        elif place is not None and place.startswith("card/") and place[5:17].isdecimal():
            number = int(place[5:17])
            if number < len(self.server.review.rows):
                self._reply(lambda: self.server.review.card(number)._asdict())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "no such row")
        elif place is not None:
            self._answer(HTTPStatus.NOT_FOUND, "nothing is here")

    def do_POST(self) -> None:
        place = self._place()
        if place is None:
            return
        origin, kind = self.headers.get("Origin"), self.headers.get("Content-Type", "")
        if (origin is not None and origin not in self._origins()) or not kind.startswith("application/json"):
            self._answer(HTTPStatus.FORBIDDEN, "only the page itself may decide")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY:
            self._answer(HTTPStatus.BAD_REQUEST, "no request of this page")
            return
        try:
            body = json.loads(self.rfile.read(int(length)))
            if place == "decide":
                number, word = body["row"], body["decision"]
                if isinstance(number, bool) or not isinstance(number, int) or not isinstance(word, str):
                    raise TypeError
                self._reply(lambda: {"decision": self.server.review.decide(number, word)})
            elif place == "done":
                self._reply(lambda: {"summary": self.server.review.summary()})
                threading.Thread(target=self.server.shutdown, daemon=True).start()
            else:
                self._answer(HTTPStatus.NOT_FOUND, "nothing is here")
        except (ValueError, KeyError, TypeError, RecursionError):
            self._answer(HTTPStatus.BAD_REQUEST, "no request of this page")

    def _origins(self) -> list[str]:
        return [f"http://{host}:{self.server.server_port}" for host in ("127.0.0.1", "localhost")]

    def _place(self) -> str | None:
        """What is asked for, below the token; None where the request is refused."""
        hosts = [origin.removeprefix("http://") for origin in self._origins()]
        _, token, *rest = [*self.path.partition("?")[0].split("/", 2), ""]
        if self.headers.get("Host") not in hosts or not secrets.compare_digest(
            token.encode(errors="replace"), self.server.token.encode()
        ):
            self._answer(HTTPStatus.FORBIDDEN, "open the address that `selfdistill review` printed")
            return None
        return rest[0]

    def _reply(self, make: Callable[[], dict[str, Any]]) -> None:
        """A JSON answer; an error of the package becomes its message."""
        try:
            self._answer(HTTPStatus.OK, json.dumps(make()), "application/json")
        except (SelfdistillError, OSError) as error:
            self._answer(HTTPStatus.CONFLICT, one_line(error, 400))

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        body = text.encode(errors="backslashreplace")
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-{self.server.nonce}'"
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"{policy}; connect-src 'self'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page shows what fails."""


def serve(
    review: Review, place: LocalAddress, tell: Callable[[str], None], show: Callable[[str], Any] | None = None
) -> str:
    """Serve a review until a person ends it on the page or by Ctrl-C.

    Args:
        review: the rows and the file.
        place: the address, which may have been told before.
        tell: hears how many rows there are, and that the review is over.
        show: opens the address, such as `webbrowser.open`.

    Returns:
        What was decided, in a line.
    """
    with ReviewServer(review, place) as server:
        tell(f"{len(review.rows)} rows to review (Ctrl-C ends it; every decision is saved at once)")
        if show is not None:
            show(server.address)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            tell("ended; the same command goes on where it was left")
    return review.summary()


def write_static(review: Review, path: Path) -> None:
    """Write a review as one HTML file that needs no server: a browser opens it offline and downloads the decisions.

    Args:
        review: the rows and the file, whose decisions so far the page goes on with.
        path: the HTML file.

    Raises:
        DataError: it cannot be written, or the file of decisions cannot be read.
    """
    described, made = review.describe(), review.decisions()
    names, escape = {row.name for row in review.rows}, (lambda text: text) if review.raw else escape_formula
    rows = [{**row, "listed": row["name"] in made} for row in described["rows"]]
    data = {
        **described,
        "rows": rows,
        "file": review.path.name,
        "name": review.path.name,
        "columns": LabelDecision._fields,
        "cells": [[escape(cell) for cell in (row.name, row.given, row.suggested)] for row in review.rows],
        "escaped": [(name, escape(name)) for name in review.classes],
        "others": [[escape(cell) for cell in one] for name, one in made.items() if name not in names],
        "cards": [review.card(number)._asdict() for number in range(len(review.rows))],
    }
    nonce = secrets.token_urlsafe(12)
    text = json.dumps(data).replace("<", "\\u003c")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = _page(nonce).replace('<meta charset="utf-8">', head, 1).replace("/*STATIC*/null", text, 1)
    write(path, page)


def _page(nonce: str) -> str:
    page = (Path(__file__).parent / "review.html").read_text(encoding="utf-8")
    return page.replace("/*STYLE*/", STYLE).replace("NONCE", nonce)
