"""What the pages share: one style, light and dark, for wide and narrow screens, and escaped text."""

from __future__ import annotations

import html
from typing import Any

__all__ = ["document", "text"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2530; --soft: #5b6b7b; --line: #dde3e9; --ground: #fff; --card: #f5f7f9;
  --pass: #1a7f4b; --fail: #c02637; --open: #9a6a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7edf3; --soft: #9fb0c0; --line: #33404d; --ground: #12181e;
  --card: #1b232b; --pass: #4cc38a; --fail: #ff7b86; --open: #e8b341; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1080px; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.card { background: var(--card); border-left: .4rem solid var(--line); border-radius: .3rem; padding: .7rem 1rem;
  margin: .7rem 0; }
.card.pass { border-color: var(--pass); } .card.fail { border-color: var(--fail); } .card.open { border-color: var(--open); }
.word { font-weight: 700; text-transform: uppercase; } .pass .word, td.pass { color: var(--pass); }
.fail .word, td.fail { color: var(--fail); } .open .word, td.open, b.open { color: var(--open); }
.card ul { margin: .4rem 0 0; padding-left: 1.1rem; }
.soft, figcaption, dt { color: var(--soft); } .small { font-size: .86rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .1rem 1rem; font-size: .9rem; } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
svg { display: block; width: 100%; height: auto; max-width: 620px; }
svg text { font-family: system-ui, sans-serif; }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; vertical-align: -.05em; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
figure { margin: 1.2rem 0; } figcaption { margin-top: .3rem; }
.panels { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
.panels img { width: 100%; display: block; border-radius: .2rem; }
@media (min-width: 901px) { th, td { overflow-wrap: normal; } td:first-child { min-width: 9rem; overflow-wrap: anywhere; }
  td:not(:first-child):not(.names) { white-space: nowrap; }
  td.names { overflow-wrap: anywhere; } td.names, th:last-child.names { text-align: left; } }
@media (max-width: 900px) {
  table.figures, table.figures tbody, table.figures tr, table.figures td { display: block; text-align: left; }
  table.figures thead { display: none; } table.figures tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  table.figures td { border: 0; padding: .05rem 0; } table.figures td:first-child { font-weight: 600; }
  table.figures td:not(:first-child)::before { content: attr(data-name) ": "; color: var(--soft); }
}
@media (max-width: 620px) {
  .panels { grid-template-columns: 1fr 1fr; } .panels img:first-child { grid-column: 1 / -1; }
  dl { grid-template-columns: 1fr; } dd { margin: 0 0 .4rem; }
}
"""


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML, `title` is not."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def text(value: Any) -> str:
    """Escaped for HTML."""
    return html.escape(str(value))
