"""How the page looks: system fonts and own styles alone, so that nothing is fetched."""

from __future__ import annotations

import html

import gradio as gr


CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important;}
#title h1 {font-size: 1.75rem; font-weight: 700; letter-spacing: -0.02em; margin-bottom: 0.15rem;}
#title p {color: var(--body-text-color-subdued); margin: 0 0 0.5rem 0;}
.facts {display: flex; flex-wrap: wrap; gap: 8px;}
.facts > div {flex: 1 1 84px; padding: 8px 10px; border: 1px solid var(--border-color-primary);
  border-radius: 10px; background: var(--block-background-fill);}
.facts span {display: block; font-size: 0.72rem; color: var(--body-text-color-subdued);}
.facts b {font-size: 0.95rem; font-weight: 600;}
.note {padding: 9px 13px; border-radius: 10px; border-left: 4px solid var(--color-accent);
  background: var(--color-accent-soft); font-size: 0.9rem;}
.note.bad {border-left-color: #dc2626; background: rgba(220, 38, 38, 0.09);}
.hint {color: var(--body-text-color-subdued); font-size: 0.87rem;}
#examples img {border-radius: 8px;}
.caption {display: flex; justify-content: space-between; font-size: 0.86rem; margin: -6px 2px 0 2px;}
.caption i {display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px;}
#pairs .grid-container {grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)) !important;}
footer {opacity: 0.75;}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important;}
  #title h1 {font-size: 1.35rem;}
}
"""


def theme() -> gr.themes.Base:
    """The page's theme."""
    return gr.themes.Soft(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )


def facts(values: dict[str, str]) -> str:
    """A row of small cards, name over value; the caller's strings are escaped."""
    cards = "".join(f"<div><span>{html.escape(n)}</span><b>{html.escape(v)}</b></div>" for n, v in values.items())
    return f'<div class="facts">{cards}</div>'


def caption(left: tuple[str, tuple[int, int, int] | None], right: tuple[str, tuple[int, int, int] | None]) -> str:
    """What the two sides of a slider show, each with the colour of its mask."""
    sides = []
    for text, colour in (left, right):
        swatch = "" if colour is None else f'<i style="background: rgb{tuple(map(int, colour))}"></i>'
        sides.append(f"<span>{swatch}{html.escape(text)}</span>")
    return f'<div class="caption">{"".join(sides)}</div>'


def complaint(message: str) -> str:
    """What went wrong, as a passing warning, and as a note that stays."""
    gr.Warning(html.escape(message), title="That did not work")
    return note(message, bad=True)


def note(message: str, bad: bool = False) -> str:
    """One message in the page."""
    return f'<div class="note{" bad" if bad else ""}">{html.escape(message)}</div>' if message else ""
