"""The contact sheet: picks with their pictures on one page, and buttons to decide about each.

The page is one file that needs nothing else. Decisions are kept in the browser's own storage and
leave it as review.csv, so a page that was closed goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoline.report.pages import STYLE, data_uri

SLAB_ANGSTROM = 50.0  # averaged, so that particles rise above the noise
PANEL_PIXELS = 144
GAP_PIXELS = 4
JPEG_QUALITY = 78


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One pick on the sheet: its row of review.csv, in the columns' order, and its picture."""

    cells: tuple[str, ...]
    jpeg: bytes


def three_views(box: NDArray[np.float32], voxel_size_angstrom: float) -> bytes:
    """Return three slices through the middle of a cube `(z, y, x)` side by side, as JPEG.

    Along z (y upwards, x to the right), along y (z upwards) and along x (z upwards, y to the
    right), each the mean of about `SLAB_ANGSTROM`, in one scale of grey.
    """
    edge = box.shape[0]
    half = max(round(SLAB_ANGSTROM / voxel_size_angstrom) // 2, 0)
    middle = slice(max(edge // 2 - half, 0), edge // 2 + half + 1)
    views = [
        box[middle].mean(0)[::-1],
        box[:, middle].mean(1)[::-1],
        box[:, :, middle].mean(2)[::-1],
    ]
    low, high = np.percentile(np.stack(views), (1, 99))
    width = 3 * PANEL_PIXELS + 2 * GAP_PIXELS
    canvas = Image.new("L", (width, PANEL_PIXELS), 255)
    for k, view in enumerate(views):
        grey = np.clip((view - low) / max(float(high - low), 1e-9), 0, 1) * 255
        panel = Image.fromarray(grey.round().astype(np.uint8))
        panel = panel.resize((PANEL_PIXELS, PANEL_PIXELS), Image.Resampling.BICUBIC)
        canvas.paste(panel, (k * (PANEL_PIXELS + GAP_PIXELS), 0))
    target = io.BytesIO()
    canvas.save(target, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return target.getvalue()


def contact_sheet(
    picks: Sequence[Shown], *, columns: Sequence[str], classes: Sequence[str], dataset: str,
    edge_nm: float,
) -> str:  # fmt: skip
    """Return the page.

    Parameters
    ----------
    columns:
        Names of the cells; `decision` is the last.
    classes:
        Names that a decision can take beside yes, no and unsure; the page lets people type others.
    edge_nm:
        Length of a picture's side.
    """
    rows = [list(pick.cells) for pick in picks]
    facts = {
        "columns": list(columns), "rows": rows, "classes": list(classes), "dataset": dataset,
        "key": f"tomoline-review-{dataset}-" + hashlib.sha256(
            json.dumps([row[:-1] for row in rows]).encode()).hexdigest()[:16],
    }  # fmt: skip
    # "<" only occurs in strings, where its escape means the same to JSON and nothing to HTML.
    data = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
    cards = "\n".join(
        _card(k, dict(zip(columns, pick.cells, strict=True)), pick.jpeg, classes)
        for k, pick in enumerate(picks)
    )
    return _PAGE.format(
        title=escape(f"Review of {dataset}"), style=STYLE + _STYLE, cards=cards, data=data,
        script=_SCRIPT, count=len(picks), edge=f"{edge_nm:g}",
    )  # fmt: skip


def _card(index: int, row: dict[str, str], jpeg: bytes, classes: Sequence[str]) -> str:
    proposed = row["class"] or "no class"
    told = f"{row['status']}, {proposed}" if row["class"] else row["status"]
    options = "".join(f"<option>{escape(name)}</option>" for name in classes)
    rings = "".join(f'<i class="ring r{k}"></i>' for k in range(3))
    return (
        f'<article id="p{index}" data-index="{index}" tabindex="-1">'
        f"<h2><b>{escape(row['number'])}</b> {escape(told)}<output></output></h2>"
        f'<div class="views"><img alt="three slices through pick {escape(row["number"])}" '
        f'loading="lazy" src="{data_uri(jpeg, "image/jpeg")}">{rings}</div>'
        f'<p class="sub">{escape(row["tomogram"])}, particle {escape(row["particle_id"])}, '
        f"x {float(row['x_vox']):.0f}, y {float(row['y_vox']):.0f}, z {float(row['z_vox']):.0f}; "
        f"score {float(row['score']):.2f}, margin {float(row['margin']):.2f}; "
        f"{escape(row['why'])}</p>"
        f'<div class="buttons"><button data-say="yes">yes'
        f"{', ' + escape(row['class']) if row['class'] else ''}</button>"
        f'<button data-say="no">no particle</button>'
        f'<select aria-label="another class"><option value="">class ...</option>{options}'
        f'<option value="+">another ...</option></select>'
        f'<button data-say="unsure">unsure</button></div></article>'
    )


_STYLE = """
body{padding-top:0}
#bar{position:sticky;top:0;z-index:2;background:#fff;border-bottom:2px solid var(--accent);
padding:8px 0;display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center}
#bar h1{margin:0;font-size:1.15rem}#bar progress{width:110px}
button,select{font:inherit;padding:7px 12px;border:1px solid #8a939d;border-radius:6px;
background:#fff;color:inherit;min-height:40px;max-width:100%}
button:focus-visible,select:focus-visible{outline:3px solid var(--accent)}
#download{background:var(--accent);border-color:var(--accent);color:#fff}
#picks{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));
gap:14px;margin:14px 0}
article{border:1px solid var(--line);border-left:6px solid var(--line);border-radius:6px;
padding:6px 12px 12px;scroll-margin-top:110px;min-width:0}
article h2{border:0;margin:0;font-size:1rem;padding:0;display:flex;gap:8px;flex-wrap:wrap}
article output{margin-left:auto;font-weight:600}
article.now{box-shadow:0 0 0 3px var(--accent)}article:focus{outline:none}
article.yes{border-left-color:#009e73}article.no{border-left-color:#d55e00}
article.unsure{border-left-color:#8a8a8a}article.named{border-left-color:#0072b2}
article.done:not(.now){background:var(--wash)}
.views{position:relative;line-height:0}.views img{width:100%;image-rendering:auto}
.ring{position:absolute;top:50%;width:13%;aspect-ratio:1;border:1px solid #ffd23f;border-radius:50%;
transform:translate(-50%,-50%);pointer-events:none}
.r0{left:16.2%}.r1{left:50%}.r2{left:83.8%}body.bare .ring{display:none}
.buttons{display:flex;flex-wrap:wrap;gap:6px}
button.on,select.on{background:var(--ink);color:#fff;border-color:var(--ink)}
body.left article.done:not(.now){display:none}
@media print{#bar button,.buttons{display:none}}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<div id="bar"><h1>{title}</h1><progress max="{count}" value="0"></progress>
<span id="state" role="status"></span>
<button id="next">next undecided</button><button id="left">hide decided</button>
<button id="download">Download review.csv</button></div>
<p class="sub">Each row shows three slices of {edge} nm through one pick: from above (x to the
right, y up), from the front (x, z up) and from the side (y, z up), each the mean of a few sections.
Is there a particle in the ring, and is its class right? Keys: <b>y</b> yes, <b>n</b> no particle,
<b>u</b> unsure, <b>1</b> to <b>9</b> a class of the list, <b>Backspace</b> takes an answer back,
<b>j</b> and <b>k</b> or the arrows go on and back, <b>m</b> hides the rings. Answers stay in this
browser until you download them; then <code>tomoline adopt</code> takes the file.</p>
<details><summary>Classes</summary><ol id="names"></ol></details>
<div id="picks">{cards}</div>
<footer><p>Written by Tomoline. This page needs no network: it can be copied, mailed or opened on a
phone.</p></footer>
<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>
"""

_SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const last = data.columns.indexOf("decision");
const cards = [...document.querySelectorAll("article")];
let said = {}, now = 0;
try { said = JSON.parse(localStorage.getItem(data.key)) || {}; } catch (e) { said = {}; }
data.rows.forEach((row, k) => { if (row[last] && !(k in said)) said[k] = row[last]; });
function keep() {
  try { localStorage.setItem(data.key, JSON.stringify(said)); }
  catch (e) { document.getElementById("state").title = "this browser keeps nothing: download"; }
}
function show(k) {
  const card = cards[k], word = said[k] || "", select = card.querySelector("select");
  const named = word && !["yes", "no", "unsure"].includes(word);
  card.classList.remove("yes", "no", "unsure", "named", "done");
  if (word) card.classList.add(named ? "named" : word, "done");
  card.querySelector("output").textContent = word;
  for (const b of card.querySelectorAll("button")) {
    b.classList.toggle("on", b.dataset.say === word);
    b.setAttribute("aria-pressed", b.dataset.say === word);
  }
  if (named && ![...select.options].some(o => o.value === word)) addName(word);
  select.value = named ? word : "";
  select.classList.toggle("on", Boolean(named));
}
function addName(word) {
  for (const select of document.querySelectorAll("article select"))
    select.add(new Option(word, word), select.options[select.options.length - 1]);
}
function count() {
  const done = Object.keys(said).length;
  document.querySelector("progress").value = done;
  document.getElementById("state").textContent = done + " of " + cards.length + " decided";
}
function go(k, scroll = true) {
  if (!cards.length) return;
  cards[now].classList.remove("now");
  now = Math.max(0, Math.min(cards.length - 1, k));
  cards[now].classList.add("now");
  if (scroll) {
    cards[now].scrollIntoView({block: "nearest"});
    cards[now].focus({preventScroll: true});
  }
}
function undecided(from) {
  for (let n = 0; n < cards.length; n++) {
    const k = (from + n) % cards.length;
    if (!said[k]) return k;
  }
  return now;
}
function say(k, word, on = true) {
  if (word) said[k] = word; else delete said[k];
  keep(); show(k); count();
  if (on && word) go(undecided(k + 1)); else go(k, false);
}
function cell(text) {
  return /[",\n;]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}
function csvText() {
  const rows = data.rows.map((row, k) =>
    row.map((text, c) => cell(c === last ? said[k] || "" : text)).join(","));
  return [data.columns.join(","), ...rows].join("\n") + "\n";
}
cards.forEach((card, k) => {
  card.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) say(k, said[k] === button.dataset.say ? "" : button.dataset.say, false);
    else if (!event.target.closest("select")) go(k, false);
  });
  card.querySelector("select").addEventListener("change", event => {
    let word = event.target.value;
    if (word === "+") word = (prompt("Name of the class") || "").trim();
    say(k, word, false);
  });
  show(k);
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
  const words = {y: "yes", n: "no", u: "unsure"}, key = event.key;
  const name = /^[1-9]$/.test(key) ? data.classes[Number(key) - 1] : "";
  if (words[key] || name) say(now, words[key] || name);
  else if (key === "Backspace" || key === "Delete") say(now, "", false);
  else if (key === "j" || key === "ArrowRight" || key === "ArrowDown") go(now + 1);
  else if (key === "k" || key === "ArrowLeft" || key === "ArrowUp") go(now - 1);
  else if (key === "m") document.body.classList.toggle("bare");
  else return;
  event.preventDefault();
});
document.getElementById("names").append(...data.classes.map(name => {
  const item = document.createElement("li");
  item.textContent = name;
  return item;
}));
document.getElementById("next").onclick = () => go(undecided(now + 1));
document.getElementById("left").onclick = event => {
  const on = document.body.classList.toggle("left");
  event.target.textContent = on ? "show all" : "hide decided";
};
document.getElementById("download").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csvText()], {type: "text/csv"}));
  link.download = "review.csv";
  link.click();
};
count();
go(undecided(0), false);
"""
