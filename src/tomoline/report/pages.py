"""The shell of every page: one HTML file with style and script inside, that fetches nothing.

`Page` collects sections; the other functions return pieces of HTML. Text given to them is escaped
unless the parameter's name ends in `html`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--line:#d5dae0;--wash:#f5f7f9;--accent:#0b5a8f;color-scheme:light}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0 auto;max-width:1180px;padding:16px 20px 60px;color:var(--ink);background:#fff;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header{border-bottom:3px solid var(--accent);margin-bottom:12px}
h1{font-size:1.6rem;line-height:1.2;margin:8px 0 2px;overflow-wrap:anywhere}
h2{font-size:1.22rem;margin:34px 0 8px;padding-top:6px;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:20px 0 6px}
p{margin:6px 0 10px;max-width:76ch}
.sub,.note,figcaption{color:var(--soft);font-size:.9rem}
.lead{font-size:1.1rem}
a{color:var(--accent)}
nav{font-size:.92rem;margin:6px 0 10px;display:flex;flex-wrap:wrap;gap:4px 14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:10px;margin:14px 0}
.tile{background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:8px 12px}
.tile b{display:block;font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}
.tile span{font-size:.88rem;color:var(--soft)}
.tile.bad{border-color:#b3400a;background:#fdf1ea}
.box{border-left:5px solid var(--accent);background:var(--wash);padding:8px 14px;margin:10px 0;
overflow-wrap:anywhere}
.box.warn{border-color:#c98a00;background:#fdf7e6}
.box.bad{border-color:#b3400a;background:#fdf1ea}
.box p{margin:3px 0}
.scroll{overflow-x:auto;margin:8px 0 14px}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--soft);background:var(--wash);vertical-align:bottom}
.num,td.r,th.r{font-variant-numeric:tabular-nums}
td.r,th.r{text-align:right}
td.r,tbody th{white-space:nowrap}
tbody th.w{white-space:normal}
td.w{min-width:15rem;overflow-wrap:anywhere}
table.many{font-size:.85rem}table.many td,table.many th{padding:4px 6px}
tr.bad td,tr.bad th{background:#fdf1ea}
tr.sum td,tr.sum th{font-weight:600;border-top:2px solid var(--soft)}
dl{display:grid;grid-template-columns:minmax(9rem,max-content) 1fr;gap:3px 16px;margin:8px 0;
font-size:.95rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,350px),1fr));gap:14px 26px}
.grid>*{min-width:0}
.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,470px),1fr))}
.grid td,.grid th{padding:4px 7px}
figure{margin:8px 0;break-inside:avoid}
figcaption{margin-top:4px}
svg.chart{width:100%;max-width:600px;height:auto;display:block}
svg.plane{width:100%;height:auto;display:block;background:#777}
svg.swatch{width:1em;height:1em;vertical-align:-.12em;margin-right:.35em}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1b1f24}
svg text.num{font-size:11px;fill:#444}
svg text.halo{paint-order:stroke;stroke:#fff;stroke-width:3px}
svg .ax{stroke:#444;stroke-width:1}svg .mark{stroke-dasharray:3 2}
svg .under{stroke:#fff;stroke-width:3}svg .grid{stroke:#e1e5e9;stroke-width:1}
.legend{display:flex;flex-wrap:wrap;gap:3px 16px;margin:6px 0 10px;padding:0;list-style:none;
font-size:.92rem}
.legend li{max-width:100%}.legend label{cursor:pointer;overflow-wrap:anywhere}
.legend.switch{position:sticky;top:0;z-index:2;background:#fff;padding:6px 0;
border-bottom:1px solid var(--line)}
button{font:inherit;font-size:.88rem;padding:1px 10px;border:1px solid var(--line);
border-radius:4px;background:var(--wash);color:var(--accent);cursor:pointer}
.minute{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,215px),1fr));gap:10px;
margin:14px 0}
.minute>div{border:1px solid var(--line);border-top:4px solid var(--accent);border-radius:6px;
padding:8px 14px;min-width:0;overflow-wrap:anywhere}
.minute>div.bad{border-top-color:#b3400a}.minute>div.warn{border-top-color:#c98a00}
.minute h2{border:0;margin:0 0 4px;padding:0;font-size:1.02rem}
.minute p{margin:4px 0;font-size:.95rem}
table.sort thead th{cursor:pointer}
th[aria-sort=ascending]::after{content:" \\25B2"}th[aria-sort=descending]::after{content:" \\25BC"}
.alone .folder{display:none}.alone a.page{pointer-events:none;color:inherit;text-decoration:none}
.js-only{display:none}.js .js-only{display:inline-block}
details{margin:8px 0}summary{cursor:pointer;color:var(--accent)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.86rem;background:var(--wash);
padding:8px 12px;margin:6px 0}
code{font-size:.92em;overflow-wrap:anywhere}
img{max-width:100%;height:auto}
footer{margin-top:40px;border-top:1px solid var(--line);color:var(--soft);font-size:.86rem}
@media(max-width:560px){body{padding:10px 12px 40px;font-size:15px}
table.stack thead{display:none}table.stack tr,table.stack td,table.stack th{display:block;border:0;
padding:1px 0}table.stack tr{border-bottom:1px solid var(--line);padding:6px 0}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:6px}h1{font-size:1.3rem}
.legend.switch{position:static}
.tiles{grid-template-columns:repeat(2,1fr)}}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}
.scroll{overflow:visible}table{font-size:8pt}th,td{padding:2px 5px}h2{break-after:avoid}
tr{break-inside:avoid}
.tile,.box,thead th,svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


# Comforts: a page without them says the same. `alone`: inside Snakemake's one-file report there is
# no folder, so links to other pages would lead nowhere.
SCRIPT = """
(() => {
const root = document.documentElement, all = (q, e) => [...(e || document).querySelectorAll(q)];
root.classList.add("js");
if (!/^(file|https?):$/.test(location.protocol)) root.classList.add("alone");
if (innerWidth < 560) all("details.singles").forEach(d => { d.open = false; });
all("button[data-tick]").forEach(b => b.addEventListener("click", () =>
  all(".legend.switch input").forEach(i => { i.checked = b.dataset.tick == "all"; })));
all("button[data-copy]").forEach(b => b.addEventListener("click", () => {
  const range = document.createRange(), chosen = getSelection();
  range.selectNodeContents(document.getElementById(b.dataset.copy));
  chosen.removeAllRanges(); chosen.addRange(range); document.execCommand("copy");
  b.textContent = "Copied";
}));
const value = c => { const t = c.textContent.trim().replace(/,/g, ""), n = parseFloat(t);
  return isNaN(n) || !/^[-\\d.]/.test(t) ? t.toLowerCase() : n; };
all("table.sort").forEach(table => all("thead th", table).forEach((head, k) => {
  const sort = () => {
    const up = head.getAttribute("aria-sort") == "descending" ? -1 : 1, body = table.tBodies[0];
    const sign = head.hasAttribute("aria-sort") ? -up : head.classList.contains("r") ? -1 : 1;
    all("thead th", table).forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    all("tr:not(.sum)", body).sort((a, b) => {
      const x = value(a.cells[k]), y = value(b.cells[k]);
      const alike = typeof x == typeof y;
      return sign * (alike ? (x < y ? -1 : x > y ? 1 : 0) : typeof x == "number" ? 1 : -1);
    }).forEach(row => body.insertBefore(row, body.querySelector("tr.sum")));
  };
  head.tabIndex = 0; head.title = head.title || "click to sort";
  head.addEventListener("click", sort);
  head.addEventListener("keydown", e => {
    if (e.key == "Enter" || e.key == " ") { e.preventDefault(); sort(); } });
}));
})();
"""


@dataclass(kw_only=True)
class Page:
    """A page in the making. `style` is added after the common style sheet.

    `above_html` stands over the title (a link back), `script_html` at the end (whole elements).
    """

    title: str
    subtitle: str = ""
    style: str = ""
    head_html: str = ""
    above_html: str = ""
    script_html: str = ""
    sections: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, heading: str, body_html: str) -> None:
        """Append a section; one without content is left out."""
        if body_html.strip():
            anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
            self.sections.append((anchor, heading, body_html))

    def html(self) -> str:
        """Return the whole document."""
        links = "".join(f'<a href="#{a}">{escape(h)}</a>' for a, h, _ in self.sections)
        nav = f"<nav aria-label='Contents'>{links}</nav>" if len(self.sections) > 3 else ""
        body = "\n".join(
            f'<section id="{a}"><h2>{escape(h)}</h2>\n{text}\n</section>'
            for a, h, text in self.sections
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}{self.style}</style></head>\n"
            f"<body><header>{self.above_html}<h1>{escape(self.title)}</h1>"
            f'<p class="sub">{escape(self.subtitle)}</p></header>\n'
            f"{self.head_html}{nav}\n<main>{body}</main>\n"
            "<footer><p>Written by Tomoline. This page needs no network: it can be copied, mailed "
            "or archived as one file.</p></footer>\n"
            f"<script>{SCRIPT}</script>{self.script_html}</body></html>\n"
        )


@dataclass(frozen=True, kw_only=True)
class Column:
    """A table's column: its heading, and whether it holds numbers (right) or prose (wide)."""

    head: str
    kind: str = ""
    hint: str = ""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def tiles(items: Iterable[tuple[str, str] | tuple[str, str, str]]) -> str:
    """Return large numbers with a word below each: (value, word[, "bad"])."""
    cells = "".join(
        f'<div class="tile {item[2] if len(item) > 2 else ""}"><b>{escape(item[0])}</b>'
        f"<span>{escape(item[1])}</span></div>"
        for item in items
    )
    return f'<div class="tiles">{cells}</div>'


def box(texts: Sequence[str], kind: str = "") -> str:
    """Return a framed notice, one paragraph a text; nothing when there are none."""
    if not texts:
        return ""
    return f'<div class="box {kind}">{"".join(paragraph(text) for text in texts)}</div>'


def facts(pairs: Mapping[str, str]) -> str:
    """Return names and values as a definition list."""
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items())
    return f"<dl>{rows}</dl>"


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, caption: str = "",
          row_kinds: Mapping[int, str] | None = None, stack: bool = False,
          sort: bool = False) -> str:  # fmt: skip
    """Return a table of ready HTML cells (use `escape` on text), the first a row heading.

    With `stack` a phone shows a row's cells below each other, so that prose needs no scrolling;
    with `sort` a click on a heading sorts.
    """
    css = {"number": "r", "prose": "w", "": ""}
    kinds = [css[column.kind] for column in columns]
    head = "".join(
        f'<th scope="col" class="{kind}"{_hint(column)}>{escape(column.head)}</th>'
        for column, kind in zip(columns, kinds, strict=True)
    )
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(
            f'<th scope="row" class="{kind}">{cell}</th>'
            if j == 0
            else f'<td class="{kind}">{cell}</td>'
            for j, (cell, kind) in enumerate(zip(row, kinds, strict=True))
        )
        lines.append(f'<tr class="{(row_kinds or {}).get(i, "")}">{cells}</tr>')
    look = "stack" if stack else "many" if len(columns) > 9 else ""
    look += " sort" if sort else ""
    title = paragraph(caption, "note") if caption else ""
    return (
        f'<div>{title}<div class="scroll" tabindex="0"><table class="{look}">'
        f"<thead><tr>{head}</tr></thead><tbody>{chr(10).join(lines)}</tbody></table></div></div>"
    )


def figure(content_html: str, caption: str) -> str:
    """Return a picture with its caption."""
    return f"<figure>{content_html}<figcaption>{escape(caption)}</figcaption></figure>"


def grid(*items_html: str, wide: bool = False) -> str:
    """Return pieces side by side where the window has room: three abreast, or two if `wide`."""
    kind = "grid wide" if wide else "grid"
    return f'<div class="{kind}">{"".join(item for item in items_html if item)}</div>'


def copied(anchor: str, content_html: str) -> str:
    """Return a piece with a button that copies its text."""
    button = f'<button type="button" class="js-only" data-copy="{escape(anchor)}">Copy</button>'
    return f'<blockquote id="{escape(anchor)}">{content_html}</blockquote>{button}'


def details(summary: str, content_html: str) -> str:
    """Return a piece that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content_html}</details>"


def data_uri(content: bytes, kind: str) -> str:
    """Return `content` as a data address of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _hint(column: Column) -> str:
    return f' title="{escape(column.hint)}"' if column.hint else ""
