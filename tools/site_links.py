"""Check every link of a built site: python tools/site_links.py site

An internal link must lead to a file and to an anchor in it. An external one is checked by its form alone, without a
network, and nothing that a page needs to be shown (scripts, styles, images) may be external.
"""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: what a browser fetches by itself, by the name of the attribute
FETCHED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}
STYLES = {"stylesheet", "icon", "preload", "preconnect"}


class Page(HTMLParser):
    """The anchors and links of one page.

    Args:
        text: The page in HTML.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links, self.needs = set[str](), set[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag names and what it leads to."""
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.needs |= {value for name, value in given.items() if (tag, name) in FETCHED}
        if tag == "link" and set(given.get("rel", "").split()) & STYLES:
            self.needs.add(given["href"])
        elif tag == "a" and "href" in given:
            self.links.add(given["href"])


def external_fault(link: str) -> str:
    """What is wrong with an address beyond the site; empty where nothing is."""
    parts = urlsplit(link)
    if parts.scheme == "mailto":
        return "" if "@" in parts.path else "no address of mail"
    if parts.scheme not in {"http", "https"}:
        return f"the scheme {parts.scheme!r}"
    return "" if "." in parts.netloc and " " not in link else "no address of a page"


def page_faults(name: str, pages: dict[str, Page], files: set[str]) -> Iterator[str]:
    """What is wrong with the links of one page, a line each."""
    page = pages[name]
    for link in sorted(page.links | page.needs):
        parts = urlsplit(link)
        if parts.scheme == "data":
            continue
        if parts.scheme or parts.netloc:
            fault = "fetched from elsewhere" if link in page.needs else external_fault(link)
            if fault:
                yield f"{name}: {link}: {fault}"
            continue
        # the page of a missing address is served for any address, so its links begin at the root
        path = parts.path if parts.path.startswith("/") else posixpath.join("/", posixpath.dirname(name), parts.path)
        target = posixpath.normpath(unquote(path)).lstrip("/") if parts.path else name
        target = target if target in files else posixpath.join(target, "index.html").removeprefix("./")
        if target not in files:
            yield f"{name}: {link}: no such file"
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
            yield f"{name}: {link}: no such anchor"


def faults(folder: Path) -> list[str]:
    """What is wrong with the links of a site.

    Args:
        folder: The folder of the built site.

    Returns:
        One line for each broken link: page, link, fault.
    """
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    pages = {name: Page((folder / name).read_text(encoding="utf-8")) for name in files if name.endswith(".html")}
    return [line for name in sorted(pages) for line in page_faults(name, pages, files)]


def main(folder: str) -> None:
    """Print the faults; exit code 1 if there is one."""
    found = faults(Path(folder))
    pages = list(Path(folder).rglob("*.html"))
    print("\n".join([*found, f"{len(pages)} pages, {len(found)} broken links"]))
    sys.exit(bool(found) or not pages)


if __name__ == "__main__":
    main(*sys.argv[1:])
