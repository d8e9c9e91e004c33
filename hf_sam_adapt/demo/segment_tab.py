"""The tab Segment: an image, an adapter, a prompt by clicks; zero-shot and adapted SAM side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from ..errors import UserError
from ..reporting.report import ABSENT, MASK_COLOURS
from . import examples
from .app import DemoApp
from .catalog import PLAIN
from .engine import Segmentation, segment_image
from .images import Picture, read_picture
from .pictures import legend, save_results, with_mask, with_prompt
from .session import Session
from .theme import Update, before_and_after, caption, facts, guarded, hint, note, two_columns


MODES = {"On the object": "positive", "Not the object": "negative", "Box: two corners": "box"}
EMPTY = note("Drop an image on the left, paste one, or take an example below. Then click on what you mean.")


class SegmentTab:
    """Builds the tab inside the current Blocks; `session` is the visitor's state."""

    def __init__(self, app: DemoApp, page: gr.Blocks, session: gr.State) -> None:
        self.app, self.page, self.session = app, page, session
        two_columns(self._inputs, self._outputs, "segment_row")
        self._connect()

    def _inputs(self) -> None:
        app = self.app
        hint("Your image: drop or paste it, then click")
        self.image = gr.Image(
            show_label=False,
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            format="jpeg",
            height=400,
            elem_id="image",
        )
        self.dataset = gr.Dataset(
            components=[gr.Image(render=False)],
            samples=[[str(path)] for path in app.examples],
            type="index",
            layout="gallery",
            label="Examples, drawn by this project",
            elem_id="examples",
        )
        self.mode = gr.Radio(list(MODES), value=next(iter(MODES)), label="A click means", elem_id="mode")
        with gr.Row():
            self.undo = gr.Button("Undo", size="sm", elem_id="undo")
            self.clear = gr.Button("Clear prompt", size="sm", elem_id="clear")
        self.adapter = gr.Dropdown(
            app.listed(),
            value=PLAIN,
            label="Adapter",
            info="Choose one, or type a Hub id (owner/name) or a run folder, and press Enter",
            allow_custom_value=True,
            elem_id="adapter",
        )
        self.domain = gr.Dropdown(
            [("Automatic: the router decides", "")],
            value="",
            label="Domain of the pool",
            visible=False,
            elem_id="domain",
        )

    def _outputs(self) -> None:
        hint("Before and after: drag the handle")
        self.slider = before_and_after("slider", 420)
        self.caption = gr.HTML(padding=False, elem_id="caption")
        self.message = gr.HTML(EMPTY, padding=False, elem_id="message")
        self.facts = gr.HTML(padding=False, elem_id="facts")
        with gr.Row():
            self.mask_file = gr.DownloadButton("Mask (PNG)", interactive=False, size="sm", elem_id="mask_file")
            self.overlay_file = gr.DownloadButton(
                "Overlay (PNG)", interactive=False, size="sm", elem_id="overlay_file"
            )

    @property
    def results(self) -> list[gr.components.Component]:
        """What a new mask changes."""
        return [self.image, self.message, self.slider, self.caption, self.facts]

    def _connect(self) -> None:
        options: dict[str, Any] = {"outputs": self.results, "concurrency_limit": 4, "api_visibility": "private"}
        options |= {"trigger_mode": "multiple", "show_progress_on": self.slider}
        choice = [self.session, self.adapter, self.domain]
        switched = options | {"outputs": [*self.results, self.domain]}
        example = options | {"outputs": [*self.results, self.adapter, self.domain]}
        events = [
            # Without preprocessing the function gets the file as it is; Gradio would open it, and fail without a word.
            self.image.upload(self._guarded(self.load), [self.image, *choice], preprocess=False, **options),
            self.image.clear(self._guarded(self.unload), [self.session], **options),
            self.image.select(self._guarded(self.click), [*choice, self.mode], **options),
            self.undo.click(self._guarded(self.take_back), choice, **options),
            self.clear.click(self._guarded(self.clear_prompt), choice, **options),
            self.domain.input(self._guarded(self.again), choice, **options),
            self.adapter.input(self._guarded(self.switch), choice, **switched),
            self.dataset.click(self._guarded(self.example), [self.dataset, self.session], **example),
            self.page.load(self._guarded(self.start), [self.session], **example),
        ]
        files = [self.mask_file, self.overlay_file, self.session]
        for event in events:
            event.then(self.save, [self.session], files, show_progress="hidden", api_visibility="private")

    def _guarded(self, action: Callable[..., Update]) -> Callable[..., Update]:
        return guarded(action, lambda message, session: {self.message: message} | self._canvas(session))

    def load(self, file: dict | None, session: Session, adapter: str, domain: str) -> Update:
        """An image was uploaded or pasted; `file` as Gradio sends it."""
        session.load(None)
        if file is None:
            return self._empty()
        picture = read_picture(file["path"], self.app.max_pixels, file.get("orig_name"))
        return self._take(session, picture, adapter, domain)

    def unload(self, session: Session) -> Update:
        """The image was removed."""
        session.load(None)
        return self._empty()

    def example(self, number: int, session: Session) -> Update:
        """An example was chosen, which comes with its adapter."""
        adapter = examples.EXAMPLES[number].adapter
        picture = read_picture(self.app.examples[number], self.app.max_pixels)
        shown = self._take(session, picture, adapter, "")
        return shown | {self.adapter: adapter, self.domain: self._domains(session, adapter)}

    def start(self, session: Session) -> Update:
        """The page was opened: it shows something at once."""
        return self.example(0, session)

    def click(self, event: gr.SelectData, session: Session, adapter: str, domain: str, mode: str) -> Update:
        """The image was clicked on."""
        if session.image is None:
            raise UserError("there is no image to click on", fix="upload one first")
        x, y = event.index
        session.click(x, y, MODES[mode])
        if session.clicks.corners and session.clicks.box is None:
            return self._canvas(session) | {self.message: note("Now click on the opposite corner of the box.")}
        return self._show(session, adapter, domain)

    def take_back(self, session: Session, adapter: str, domain: str) -> Update:
        """Undo."""
        session.undo()
        return self._show(session, adapter, domain)

    def clear_prompt(self, session: Session, adapter: str, domain: str) -> Update:
        """No prompt any more."""
        session.clear()
        return self._show(session, adapter, domain)

    def again(self, session: Session, adapter: str, domain: str) -> Update:
        """The domain was overridden."""
        return self._show(session, adapter, domain)

    def switch(self, session: Session, adapter: str, domain: str) -> Update:
        """Another adapter was chosen, or typed."""
        domains = self._domains(session, adapter)
        return self._show(session, adapter, "") | {self.domain: domains}

    def save(self, session: Session) -> Update:
        """The files behind the download buttons, written when everything is on the page already."""
        with session.lock:
            if session.image is None or session.result is None:
                none = gr.DownloadButton(interactive=False)
                return {self.mask_file: none, self.overlay_file: none, self.session: session}
            paths = save_results(self.app.files(session), session.image.picture, *session.result)
        mask, overlay = (gr.DownloadButton(value=str(path), interactive=True) for path in paths)
        return {self.mask_file: mask, self.overlay_file: overlay, self.session: session}

    def _take(self, session: Session, picture: Picture, adapter: str, domain: str) -> Update:
        session.load(picture)
        return self._show(session, adapter, domain)

    def _show(self, session: Session, adapter: str, domain: str) -> Update:
        """Segment the image by plain SAM and by the adapter, and show both."""
        if session.image is None:
            return self._empty()
        entry = self.app.entry(adapter, session)
        picture, prompt = session.image.picture, session.clicks.prompt()
        zero_shot = segment_image(session.image, entry.base, prompt)
        result = zero_shot if entry.is_plain else segment_image(session.image, entry, prompt, domain or None)
        variant = "zero_shot" if entry.is_plain else "adapted"
        session.result = result, variant
        left = picture.shown if entry.is_plain else with_mask(picture.shown, zero_shot, "zero_shot")
        zero_shot_side = "zero-shot SAM", MASK_COLOURS["zero_shot"]
        if result.classes:  # whose colours may be like that of zero-shot SAM
            zero_shot_side = "left: zero-shot SAM", MASK_COLOURS["zero_shot"]
        adapted_sides = legend(result) if result.classes else [("adapted", MASK_COLOURS["adapted"])]
        sides = [("image", None), zero_shot_side] if entry.is_plain else [zero_shot_side, *adapted_sides]
        return self._canvas(session) | {
            self.message: note(_remark(session, result)),
            self.slider: (left, with_mask(picture.shown, result, variant)),
            self.caption: caption(*sides),
            self.facts: _facts(zero_shot, result, entry.is_plain),
        }

    def _canvas(self, session: Session) -> Update:
        if session.image is None:
            return {self.image: None}
        result, variant = session.result or (None, "zero_shot")
        return {self.image: with_prompt(session.image.picture, session.clicks, result, variant)}

    def _empty(self) -> Update:
        empty = {self.caption: "", self.facts: "", self.slider: None, self.image: None}
        return empty | {self.message: EMPTY}

    def _domains(self, session: Session, adapter: str) -> gr.Dropdown:
        """The list to override a pool's router with; hidden for other adapters."""
        pool = self.app.entry(adapter, session).pool
        named = [] if pool is None else [*((name, name) for name in pool.domains), ("Unknown: plain SAM", "base")]
        return gr.Dropdown([("Automatic: the router decides", ""), *named], value="", visible=pool is not None)


def _remark(session: Session, result: Segmentation) -> str:
    if result.domain is not None:
        chosen = "is unknown to the router, so plain SAM is used" if result.domain == "base" else f"is {result.domain}"
        return f"The domain of this image {chosen}."
    if result.classes is not None:
        return "This adapter names the class of every pixel; a prompt acts on zero-shot SAM alone."
    clicks = session.clicks
    if clicks.box:
        return "Both models segment what is in your box."
    if clicks.points:
        on, off = (sum(label == wanted for *_, label in clicks.points) for wanted in (1, 0))
        return f"Both models segment what you point at: {on} on the object{f', {off} beside it' if off else ''}."
    return "No prompt: both models look for their object by themselves. Click on the image to point at yours."


def _facts(zero_shot: Segmentation, result: Segmentation, plain: bool) -> str:
    estimate = ABSENT if result.estimate is None else f"{result.estimate:.2f}"
    seconds = result.seconds if plain else zero_shot.seconds + result.seconds
    values = {"IoU estimate": estimate}
    if not plain:
        values["Zero-shot mask"] = f"{100 * zero_shot.mask.mean():.1f} %"
    if result.classes is None:
        values["Mask" if plain else "Adapted mask"] = f"{100 * result.mask.mean():.1f} %"
    else:
        values["Classes found"] = str(len(np.unique(result.mask)))
    if result.domain is not None:
        values["Domain"] = result.domain
    reused = not (result.encoded or zero_shot.encoded)
    return facts(values | {"Time": f"{seconds:.2f} s", "Embedding": "reused" if reused else "computed"})
