"""The tab Route: which domain of a pool each image goes to, how sure the router is, and what another choice gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..errors import UserError
from ..files import BASE
from ..reporting.report import MASK_COLOURS
from ..tuners.moda.pool import Routing
from .app import DemoApp
from .charts import bars, gauge
from .engine import route_image, segment_image
from .images import read_picture
from .loaded_adapters import Entry
from .pictures import with_mask
from .session import Clicks, ImageState, Session, kept
from .theme import Update, before_and_after, caption, guarded, hint, note, pictures, two_columns


MOST_IMAGES = 12
UNKNOWN = "unknown → plain SAM"
EMPTY = note("Upload images of several kinds, or take the drawn ones: the router says where each of them belongs.")


class RouteTab:
    """Builds the tab inside the current Blocks; `session` is the visitor's state."""

    def __init__(self, app: DemoApp, session: gr.State) -> None:
        self.app, self.session = app, session
        self.chosen = gr.State(0)
        two_columns(self._inputs, self._outputs, "route_row")
        self._connect()

    def _inputs(self) -> None:
        pools = self.app.pools()
        self.pool = gr.Dropdown(
            pools,
            value=pools[0][1] if pools else None,
            label="Pool of domains",
            info="Choose one, or type a Hub id of a MoDA pool and press Enter",
            allow_custom_value=True,
            elem_id="pool",
        )
        self.files = gr.File(
            label=f"Images, up to {MOST_IMAGES}",
            file_count="multiple",
            type="filepath",
            height=140,
            elem_id="route_files",
        )
        self.mixed = gr.Button("Route a mixed set of drawn images", variant="primary", elem_id="mixed")
        hint("Where each image went: click on one for its scores")
        self.gallery = pictures("routed", columns=3, height=350, object_fit="contain")

    def _outputs(self) -> None:
        self.message = gr.HTML(EMPTY, padding=False, elem_id="route_message")
        self.scores = gr.HTML(padding=False, elem_id="scores")
        self.override = gr.Radio([], label="Segment it as", visible=False, elem_id="override")
        self.slider = before_and_after("route_slider", 380, visible=False)
        self.caption = gr.HTML(padding=False, elem_id="route_caption")

    def _connect(self) -> None:
        options: dict[str, Any] = {"concurrency_limit": 2, "api_visibility": "private", "trigger_mode": "multiple"}
        options["show_progress_on"] = self.slider
        every = [
            self.gallery,
            self.message,
            self.scores,
            self.override,
            self.slider,
            self.caption,
            self.chosen,
        ]
        inputs = [self.session, self.pool]
        events = [
            self.files.upload(self._guarded(self.load), [self.files, *inputs], every, **options),
            self.mixed.click(self._guarded(self.take_drawn), inputs, every, **options),
            self.pool.input(self._guarded(self.route), inputs, every, **options),
            self.gallery.select(self._guarded(self.choose), inputs, every[1:], **options),
            self.override.input(
                self._guarded(self.another), [*inputs, self.chosen, self.override], every[1:], **options
            ),
        ]
        for event in events:
            event.then(kept, self.session, self.session, api_visibility="private", show_progress="hidden")

    def _guarded(self, action: Callable[..., Update]) -> Callable[..., Update]:
        return guarded(action, lambda message, session: {self.message: message})

    def load(self, files: list[str] | None, session: Session, pool: str) -> Update:
        """Images were uploaded."""
        files = files or []
        if len(files) > MOST_IMAGES:
            raise UserError(f"{len(files)} images are more than {MOST_IMAGES}", fix="choose fewer")
        session.routed = [ImageState(read_picture(file, self.app.max_pixels)) for file in files]
        return self.route(session, pool)

    def take_drawn(self, session: Session, pool: str) -> Update:
        """The drawn images were asked for."""
        return self.load([str(path) for path in self.app.routed], session, pool)

    def route(self, session: Session, pool: str) -> Update:
        """Send every image to its domain, and show the first."""
        if not session.routed:
            return {self.message: EMPTY}
        entry = self._pool(session, pool)
        items = []
        for image in session.routed:
            routing = route_image(image, entry)
            domain = routing.domains[0]
            result = segment_image(image, entry, Clicks().prompt(), domain)
            tinted = with_mask(image.picture.shown, result, "zero_shot" if domain == BASE else "adapted")
            score = routing.scores[0].max().item()
            items.append((tinted, "unknown" if domain == BASE else f"{domain} {score:.2f}"))
        return {self.gallery: gr.Gallery(items, selected_index=0)} | self._show(session, entry, 0)

    def choose(self, event: gr.SelectData, session: Session, pool: str) -> Update:
        """An image of the gallery was clicked on."""
        return self._show(session, self._pool(session, pool), event.index)

    def another(self, session: Session, pool: str, number: int, domain: str) -> Update:
        """The router was overridden for an image."""
        entry = self._pool(session, pool)
        message = note(self._sentence(session, entry, number, domain))
        return {self.message: message} | self._compared(session, entry, number, domain)

    def _pool(self, session: Session, name: str) -> Entry:
        entry = self.app.entry(name, session)
        if entry.pool is None:
            raise UserError(
                "this adapter is not a pool of domains", fix="choose or type one that `continual` has trained"
            )
        return entry

    def _show(self, session: Session, entry: Entry, number: int) -> Update:
        """Scores, domain and masks of one image."""
        if not 0 <= number < len(session.routed):
            raise UserError("this image is gone", fix="choose another")
        routing = route_image(session.routed[number], entry)
        domain, names = routing.domains[0], entry.pool.domains  # type: ignore[union-attr]
        choices = [*((name, name) for name in names), ("plain SAM", BASE)]
        return {
            self.message: note(self._sentence(session, entry, number, domain)),
            self.scores: _chart(routing, names),
            self.override: gr.Radio(choices, value=domain, visible=True),
            self.chosen: number,
        } | self._compared(session, entry, number, domain)

    def _compared(self, session: Session, entry: Entry, number: int, domain: str) -> Update:
        image, prompt = session.routed[number], Clicks().prompt()
        variant = "zero_shot" if domain == BASE else "adapted"
        left = with_mask(image.picture.shown, segment_image(image, entry.base, prompt), "zero_shot")
        right = with_mask(image.picture.shown, segment_image(image, entry, prompt, domain), variant)
        sides = (
            ("zero-shot SAM", MASK_COLOURS["zero_shot"]),
            ("plain SAM" if domain == BASE else f"as {domain}", MASK_COLOURS[variant]),
        )
        return {self.slider: gr.ImageSlider((left, right), visible=True), self.caption: caption(*sides)}

    def _sentence(self, session: Session, entry: Entry, number: int, domain: str) -> str:
        image = session.routed[number]
        routing = route_image(image, entry)
        routed, score = routing.domains[0], routing.scores[0].max().item()
        nearest = entry.pool.domains[int(routing.scores[0].argmax())]  # type: ignore[union-attr]
        if domain != routed:
            return f"{image.picture.name}: the router says {_said(routed)}; you chose {_said(domain)}."
        if routed == BASE:
            return f"{image.picture.name}: {UNKNOWN}. Even {nearest}, the most probable domain, is too far away."
        return f"{image.picture.name}: {routed}, with a probability of {score:.2f}."


def _chart(routing: Routing, names: list[str]) -> str:
    """Probability of each domain, and the distance by which an image is known or not."""
    unknown = routing.domains[0] == BASE
    scores = list(zip(names, routing.scores[0].tolist()))
    title = "Which domain it would be, were it one of them" if unknown else "Probability of each domain"
    chart = bars(title, scores, faint=unknown)
    if routing.distances is None or routing.threshold is None:
        return chart
    nearest = max(scores, key=lambda one: one[1])[0]
    sentence = f"How far it is from the nearest training image of {nearest}; beyond the threshold it is unknown"
    return gauge(sentence, routing.distances[0].item(), routing.threshold) + chart


def _said(domain: str) -> str:
    return UNKNOWN if domain == BASE else domain
