"""The page around the figures: one HTML file without scripts or external files, for light and dark mode."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..io.display import printable

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c1e21;--soft:#565d66;--rule:#d8dce1;--card:#f5f6f8;--good:#00684f;
--bad:#a8380f;--c0:#0062a3;--c1:#b45309;--c2:#00735a;--c3:#9d3d7f;--c4:#6b5a00;--c5:#4b4fb3}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e8eaed;--soft:#a6aeb8;--rule:#3a4047;--card:#1e2226;
--good:#4fd1a5;--bad:#ff9b70;--c0:#6cb8f5;--c1:#f0a94a;--c2:#4fd1a5;--c3:#e59ac8;--c4:#d9c65b;--c5:#a9acf5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
p{margin:.4rem 0}.soft,figcaption{color:var(--soft);font-size:.9rem}
.verdict{border-left:4px solid var(--c0);background:var(--card);padding:.6rem .9rem;margin:.8rem 0;font-size:1.05rem}
.outcome h2{margin:1.2rem 0 .3rem}.outcome pre{white-space:pre-wrap}.outcome ul{margin:.3rem 0;padding-left:1.2rem}
.steps{margin:.3rem 0;padding-left:1.4rem}.steps li{margin:.5rem 0}.steps pre{margin:.2rem 0}
summary{cursor:pointer;margin:1rem 0}summary h2{display:inline}
:focus-visible{outline:3px solid var(--c0);outline-offset:2px}
.wide{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.9rem;min-width:100%}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
tbody th{font-weight:400}
th:first-child,td:first-child,.words th,.words td{text-align:left}
tbody th:first-child{white-space:normal;min-width:8.5rem;overflow-wrap:break-word}
.words td,.words tbody th{white-space:normal;vertical-align:top;overflow-wrap:break-word}
.matrix table{min-width:0}.matrix th,.matrix td{padding:.2rem .4rem;text-align:center}
.matrix tbody th:first-child{min-width:0;text-align:left;white-space:nowrap}
.matrix td{background:color-mix(in srgb,var(--c0) var(--s,0%),var(--bg))}
.matrix td.right{outline:2px solid var(--soft);outline-offset:-2px}
.cards{list-style:none;margin:.6rem 0;padding:0;display:grid;gap:.6rem;
grid-template-columns:repeat(auto-fill,minmax(8rem,1fr))}
.cards.rows{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
.cards li{background:var(--card);border:1px solid var(--rule);padding:.4rem;font-size:.85rem;line-height:1.35}
.cards img{display:block;width:100%;max-width:8rem;margin:0 auto .3rem;height:auto}
.cards img.pixels{image-rendering:pixelated}
.cards .text{display:block;max-height:9rem;overflow:hidden;margin-bottom:.3rem}
.cards .cell{display:block}.cards b{font-weight:600}.cards .cell,.cards .soft{font-size:.8rem}
pre{background:var(--card);padding:.7rem;overflow-x:auto;font-size:.85rem;overflow-wrap:normal}
figure{margin:.6rem 0}svg{width:100%;height:auto;display:block}figure.small{max-width:28rem}img{max-width:100%}
.wide>svg{min-width:30rem}.small .wide>svg{min-width:16rem}
.grid2{display:grid;gap:.5rem 1.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.grid2 .wide>svg{min-width:19rem}
.legend{list-style:none;margin:.2rem 0;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem}
svg.key{width:28px;height:8px;display:inline-block}
.t{fill:var(--fg);font-size:13px}.t.good{fill:var(--good)}.t.bad{fill:var(--bad)}
.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}.ideal{stroke:var(--soft);stroke-dasharray:4 4}
.c{fill:none;stroke-width:2}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}
.c5{stroke:var(--c5)}
.d{stroke:var(--bg)}.d0{fill:var(--c0)}.d1{fill:var(--c1)}.d2{fill:var(--c2)}.d3{fill:var(--c3)}.d4{fill:var(--c4)}
.d5{fill:var(--c5)}
.c.apart{stroke:var(--fg);stroke-width:3;stroke-dasharray:1 5;stroke-linecap:round}.d.apart{fill:var(--fg)}
.mark{stroke-width:1.5;stroke-dasharray:3 3}line.good{stroke:var(--good)}line.bad{stroke:var(--bad)}
line.even{stroke:var(--soft)}
circle.good{fill:var(--good)}circle.bad{fill:var(--bad)}circle.even{fill:var(--soft)}.span{stroke-width:3}
.bars{list-style:none;margin:.2rem 0;padding:0;font-size:.9rem}.bars li{margin:.5rem 0}
.bar{height:.7rem;background:var(--c0);border:1px solid var(--c0);position:relative}
.track{background:var(--card);border:1px solid var(--rule);position:relative}
.tick{position:absolute;top:-.2rem;bottom:-.2rem;width:3px;margin-left:-1px;background:var(--fg)}
.box{fill:var(--card);stroke-width:2}.box.good{stroke:var(--good)}
.box.bad{stroke:var(--bad);stroke-dasharray:5 3}
.arrow{fill:none;stroke:var(--soft);stroke-width:1.5}.tip{fill:var(--soft)}
@media print{:root{color-scheme:light;--bg:#fff;--fg:#000;--soft:#444;--rule:#bbb;--card:#fff;--good:#00684f;
--bad:#a8380f;--c0:#0062a3;--c1:#b45309;--c2:#00735a;--c3:#9d3d7f;--c4:#6b5a00;--c5:#4b4fb3}
body{max-width:none;padding:0;font-size:10pt}figure,.cards li,tr,.bars li{break-inside:avoid}
h2,summary{break-after:avoid}
.bar,.matrix td,.tick{print-color-adjust:exact;-webkit-print-color-adjust:exact}.wide{overflow:visible}
.cards{grid-template-columns:repeat(6,1fr)}.cards.rows{grid-template-columns:repeat(2,1fr)}pre{white-space:pre-wrap}
details::details-content{content-visibility:visible;height:auto}}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The whole HTML file, from a title in plain text and parts in HTML."""
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main><h1>{escape(title)}</h1>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )
    return printable(text)


def section(heading: str, *parts: str, level: int = 2) -> str:
    """A heading and its parts; empty if all parts are."""
    inner = "\n".join(part for part in parts if part)
    return f"<section><h{level}>{escape(heading)}</h{level}>\n{inner}</section>" if inner else ""


def figure(drawing: str, caption: str = "", kind: str = "") -> str:
    """A drawing with its caption; empty without a drawing."""
    if not drawing:
        return ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{box(drawing, "wide", caption or "figure")}{below}</figure>'


def picture(path: Path, caption: str) -> str:
    """A PNG with its caption, within the page; empty where there is none."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return figure(f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">', caption)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "wide") -> str:
    """A table in a box that scrolls by itself; of kind ``words`` its cells are text that wraps."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return box(f"<table>{top}<tbody>{body}</tbody></table>", kind, head[0] or "table")


def box(inner: str, kind: str, label: str) -> str:
    """A box that scrolls sideways, by the keyboard too."""
    return f'<div class="{kind}" tabindex="0" role="group" aria-label="{escape(label, quote=True)}">{inner}</div>'


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str], down: str, across: str) -> str:
    """A square table of counts, darker where a row has more of its share; the diagonal has a frame."""
    head = f'<th scope="col">{escape(down)} \\ {escape(across)}</th>'
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        whole = max(1, sum(row))
        cells = "".join(
            f'<td{" class=right" if i == j else ""} style="--s:{40 * count / whole:.0f}%">{count or ""}</td>'
            for j, count in enumerate(row)
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    whole_table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return box(whole_table, "wide matrix", f"{down} by {across}")


def details(heading: str, *parts: str, unfolded: bool = False) -> str:
    """Parts below a heading that unfolds them; empty if all parts are."""
    inner = "\n".join(part for part in parts if part)
    state = " open" if unfolded else ""
    return f"<details{state}><summary><h2>{escape(heading)}</h2></summary>\n{inner}</details>" if inner else ""


def steps(lines: Sequence[tuple[str, str]]) -> str:
    """A numbered list of what to do: words, and the command that does it."""
    items = "".join(f"<li>{escape(words)}{code(command)}</li>" for words, command in lines)
    return f'<ol class="steps">{items}</ol>' if lines else ""


def listed(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def paragraph(words: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(words)}</p>' if words else ""


def code(words: str) -> str:
    return f'<pre tabindex="0">{escape(words)}</pre>' if words else ""
