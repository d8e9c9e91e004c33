"""How the page looks: system fonts and own styles alone, so that nothing is fetched."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from ..errors import UserError
from .session import Session


Update = dict[Any, Any]  # component -> its new value


CSS = """
/* The full width: otherwise the page is as wide as its longest text, and jumps with it. */
.gradio-container {width: 100% !important; min-width: 0 !important; max-width: 1240px !important;
  margin: 0 auto !important;}
#title h1 {font-size: 1.75rem; font-weight: 700; letter-spacing: -0.02em; margin-bottom: 0.15rem;}
#title p {color: var(--body-text-color-subdued); margin: 0 0 0.5rem 0;}
.facts {display: flex; flex-wrap: wrap; gap: 8px;}
.facts > div {flex: 1 1 84px; padding: 8px 10px; border: 1px solid var(--border-color-primary);
  border-radius: 10px; background: var(--block-background-fill);}
.facts span {display: block; font-size: 0.72rem; color: var(--body-text-color-subdued);}
.facts b {font-size: 0.95rem; font-weight: 600;}
.note {padding: 9px 13px; border-radius: 10px; border-left: 4px solid var(--color-accent); min-height: 60px;
  display: flex; align-items: center; background: var(--color-accent-soft); font-size: 0.9rem;}
.note.bad {border-left-color: #dc2626; background: rgba(220, 38, 38, 0.09);}
.wide {white-space: nowrap; overflow: hidden;}
.hint {color: var(--body-text-color-subdued); font-size: 0.87rem;}
#examples img {border-radius: 8px; width: 100%; height: 64px; object-fit: cover;}
#examples .gallery {display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px;}
#examples button, #examples button > span, #examples .container {display: block; width: 100%; max-width: none;
  min-width: 0; height: 64px;}
.secondary-wrap input {text-overflow: ellipsis; padding-right: 26px;}
.caption {display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 14px; font-size: 0.86rem;
  margin: -6px 2px 0 2px;}
.caption i {display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px;}
.caption i.none {border: 1px solid var(--body-text-color-subdued);}
.chart {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 8px 12px; font-size: 0.86rem;
  background: var(--block-background-fill); margin-bottom: 8px;}
.chart p {margin: 0 0 4px 0; color: var(--body-text-color-subdued);}
.chart svg {width: 100%; display: block; font-size: 12px;}
.chart svg text {fill: var(--body-text-color-subdued);}
.chart svg path {stroke: var(--border-color-primary);}
.chart svg polyline {fill: none; stroke: #1e6ee6; stroke-width: 2;}
.chart svg circle {fill: #1e6ee6;}
.bars {display: grid; grid-template-columns: fit-content(40%) 1fr 3.2em; gap: 6px 10px; align-items: center;}
.bars > div {position: relative; height: 14px; border-radius: 4px; background: var(--background-fill-secondary);}
.bars i {display: block; height: 100%; border-radius: 4px; background: #1e6ee6;}
.bars i.beyond {background: #dc2626;}
.bars u {position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--body-text-color);}
.bars b {text-align: right;}
.faint .bars {opacity: 0.45;}
#routed .caption-label, #pairs .caption-label {font-size: 0.72rem; max-width: 100%; padding: 2px 5px;}
#pairs .grid-container {grid-template-columns: repeat(auto-fill, minmax(54px, 1fr)) !important;}
footer {opacity: 0.75;}
@media (max-width: 1000px) {.note {min-height: 80px;}}
/* Narrow: one column, in which a result stands beside what is tapped for it. */
@media (max-width: 720px) {
  .gradio-container {padding: 8px !important;}
  #title h1 {font-size: 1.35rem;}
  #segment_row > .column, #route_row > .column {display: contents;}
  #segment_row > .column > *, #route_row > .column > * {order: 5; width: 100%; min-width: 0 !important;}
  #segment_row .wide, #route_row .wide {display: none;}
  #segment_row #examples {order: 1;}
  #segment_row #image {order: 2; height: 300px !important;}
  #segment_row #message {order: 3;}
  #segment_row #slider, #segment_row #caption {order: 4;}
  #routed {order: 6 !important; height: 220px !important;}
  #route_message {order: 7 !important;}
  #route_row #override, #route_row *:has(> #override), #route_slider, #route_caption {order: 8 !important;}
  #scores {order: 9 !important;}
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


def caption(*entries: tuple[str, tuple[int, ...] | None]) -> str:
    """What a slider shows, each with the colour of its mask, None = no mask."""
    sides = []
    for text, colour in entries:
        style = 'class="none"' if colour is None else f'style="background: rgb{tuple(map(int, colour))}"'
        sides.append(f"<span><i {style}></i>{html.escape(text)}</span>")
    return f'<div class="caption">{"".join(sides)}</div>'


def two_columns(left: Callable[[], None], right: Callable[[], None], elem_id: str | None = None) -> None:
    """What is asked for beside what comes of it; one below the other on a narrow page."""
    with gr.Row(equal_height=False, elem_id=elem_id):
        for build, scale in ((left, 5), (right, 6)):
            with gr.Column(scale=scale, min_width=320):
                build()


def before_and_after(elem_id: str, max_height: int, visible: bool = True) -> gr.ImageSlider:
    """Two pictures of one image under a handle."""
    how: dict[str, Any] = {"type": "filepath", "format": "jpeg", "interactive": False, "show_label": False}
    return gr.ImageSlider(max_height=max_height, visible=visible, elem_id=elem_id, **how)


def pictures(elem_id: str, columns: int, height: int, **further: Any) -> gr.Gallery:
    """A gallery that shows small pictures and no large one."""
    how: dict[str, Any] = {"buttons": [], "allow_preview": False, "interactive": False, "format": "jpeg"}
    return gr.Gallery(show_label=False, columns=columns, height=height, elem_id=elem_id, **how, **further)


def hint(text: str) -> gr.HTML:
    """A line over a part of a wide page."""
    return gr.HTML(f'<span class="hint">{html.escape(text)}</span>', padding=False, elem_classes="wide")


def complaint(message: str) -> str:
    """What went wrong, as a passing warning, and as a note that stays."""
    gr.Warning(html.escape(message), title="That did not work")
    return note(message, bad=True)


def guarded(action: Callable[..., Update], refused: Callable[[str, Session], Update]) -> Callable[..., Update]:
    """`action` under its visitor's lock, and in place of a `UserError` what `refused` makes of the message."""

    @wraps(action)
    def run(*args: Any, **kwargs: Any) -> Update:
        session = next(value for value in args if isinstance(value, Session))
        with session.lock:
            try:
                return action(*args, **kwargs)
            except UserError as error:
                return refused(complaint(str(error)), session)

    return run


def note(message: str, bad: bool = False) -> str:
    """One message in the page."""
    return f'<div class="note{" bad" if bad else ""}">{html.escape(message)}</div>' if message else ""
