"""Pages of the site for files of the repository outside docs/ that a page links to; a hook of MkDocs (mkdocs.yml).

Links between the documents are written for a reader of the repository, such as `../CONTRIBUTING.md`. On the site such
a file is the page `repository/CONTRIBUTING.md`: a document as it is, a notebook with its outputs, any other text as a
block of code.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "repository/"
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json"}


def page_of(path: str) -> str:
    """The page of the site that shows a file of the repository.

    >>> page_of("docs/guide.md"), page_of("CONTRIBUTING.md"), page_of("examples/own_loop.py")
    ('guide.md', 'repository/CONTRIBUTING.md', 'repository/examples/own_loop.py.md')
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return FOLDER + path if path.endswith(".md") else f"{FOLDER}{path}.md"


def file_of(page: str) -> str:
    """The file of the repository that a page of the site shows; the reverse of `page_of`.

    >>> file_of("guide.md"), file_of("repository/CONTRIBUTING.md"), file_of("repository/examples/own_loop.py.md")
    ('docs/guide.md', 'CONTRIBUTING.md', 'examples/own_loop.py')
    """
    if not page.startswith(FOLDER):
        return f"docs/{page}"
    path = page.removeprefix(FOLDER)
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def outside_code(text: str) -> str:
    """A document without its blocks of code, in which nothing is a link."""
    return FENCE.sub("", text)


def targets(path: str) -> set[str]:
    """The files of the repository that a document links to, as paths from its root."""
    text = outside_code((ROOT / path).read_text(encoding="utf-8"))
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for _, link, _ in LINK.findall(text)}


def relinked(text: str, path: str) -> str:
    """A document whose links to files of the repository lead to pages of the site."""
    here = posixpath.dirname(page_of(path))

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        inside = path.startswith("docs/") and target.startswith("docs/")
        if inside or not (ROOT / target).is_file():
            return match[0]
        return f"{match[1]}{posixpath.relpath(page_of(target), here or '.')}{match[3]}"

    pieces, end = list[str](), 0
    for block in FENCE.finditer(text):
        pieces += [LINK.sub(lead, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*pieces, LINK.sub(lead, text[end:])])


def notebook_page(path: Path) -> str:
    """A notebook as a document: its texts, its code and the outputs that are stored in it."""
    parts = list[str]()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![output](data:image/png;base64,{data['image/png'].strip()})")
            elif text := "".join(output.get("text") or data.get("text/plain", "")):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def page(path: str) -> str:
    """The document of the site that shows a file of the repository."""
    file = ROOT / path
    if file.suffix == ".ipynb":
        return notebook_page(file)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    return f"# {path}\n\n```{LANGUAGES.get(file.suffix, 'text')}\n{text}```\n"


def shown(documents: set[str]) -> set[str]:
    """The files outside docs/ that these documents lead to, directly or by way of each other."""
    found, open_ = set[str](), set(documents) | set(ALWAYS)
    while open_:
        path = open_.pop()
        if not path.startswith("docs/"):
            found.add(path)
        if path.endswith(".md"):
            open_ |= {t for t in targets(path) - found if not t.startswith("docs/") and (ROOT / t).is_file()}
    return found


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of repository files."""
    from mkdocs.structure.files import File

    documents = {file_of(file.src_uri) for file in files if file.src_uri.endswith(".md")}
    for path in sorted(shown(documents)):
        files.append(File.generated(config, page_of(path), content=page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to pages."""
    return relinked(markdown, file_of(page.file.src_uri))
