"""The tab Adapt: a few images with masks, a method and a budget; a training that can be watched and stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from ..errors import UserError
from ..hub.push import push_folder
from ..reporting.report import MASK_COLOURS, overlay
from .app import DemoApp
from .charts import curve
from .images import resize_mask
from .job import METHOD_LABELS, MOST_STEPS, AdaptJob, Progress
from .session import Session, kept
from .theme import Update, before_and_after, caption, complaint, facts, note, pictures, two_columns
from .training_images import FEWEST_PAIRS, MOST_PAIRS, Pair, check_pairs, painted_pair, read_pairs


EMPTY = note("The held-out image shows here what is learned.")
NONE_YET = note(f"Upload {FEWEST_PAIRS} to {MOST_PAIRS} images and a mask for each, or take the five drawn ones.")
PUSH_TITLE = "Push to the Hub"
_POLL = 0.5  # seconds between two looks at a training


class AdaptTab:
    """Builds the tab inside the current Blocks; `session` is the visitor's state."""

    def __init__(self, app: DemoApp, session: gr.State, adapter: gr.Dropdown, tab: gr.Tab) -> None:
        self.app, self.session, self.adapter, self.tab = app, session, adapter, tab
        two_columns(self._inputs, self._outputs)
        self._connect()

    def _inputs(self) -> None:
        with gr.Row():
            files: dict[str, Any] = {"file_count": "multiple", "type": "filepath", "height": 120}
            self.images = gr.File(label="Images", elem_id="adapt_images", **files)
            self.masks = gr.File(label="Masks", elem_id="adapt_masks", **files)
        self.drawn = gr.Button("Take five drawn images", size="sm", variant="primary", elem_id="take_drawn")
        with gr.Accordion("No masks? Paint one", open=False, elem_id="paint"):
            self.editor = gr.ImageEditor(
                label="Open an image, paint over the object, add it",
                sources=["upload", "clipboard"],
                type="numpy",
                brush=gr.Brush(default_size="auto", colors=["#22c55e"], default_color="#22c55e"),
                transforms=(),
                height=340,
                elem_id="editor",
            )
            self.add_painted = gr.Button("Add the painted image", size="sm", elem_id="add_painted")
        self.gathered = gr.HTML(NONE_YET, padding=False, elem_id="gathered")
        self.gallery = pictures("pairs", columns=5, height=130)
        self.clear = gr.Button("Remove all", size="sm", elem_id="clear_pairs")
        self.method = gr.Dropdown(
            [(label, name) for name, label in METHOD_LABELS.items()], value="hq", label="Method", elem_id="method"
        )
        self.steps = gr.Slider(10, MOST_STEPS, value=60, step=10, label="Budget: training steps", elem_id="steps")
        with gr.Row():
            self.start = gr.Button("Adapt", variant="primary", elem_id="start")
            self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")

    def _outputs(self) -> None:
        self.message = gr.HTML(EMPTY, padding=False, elem_id="adapt_message")
        self.facts = gr.HTML(padding=False, elem_id="adapt_facts")
        self.slider = before_and_after("adapt_slider", 360, visible=False)
        self.caption = gr.HTML(padding=False, elem_id="adapt_caption")
        self.curve = gr.HTML(padding=False, elem_id="curve")
        self.download = gr.DownloadButton("Download the adapter (zip)", visible=False, elem_id="download")
        with gr.Accordion(PUSH_TITLE, open=False, visible=False, elem_id="push") as self.push_box:
            gr.Markdown("A token with write access is used for this push alone: not stored, not shown.")
            self.repo = gr.Textbox(label="Repository", placeholder="owner/name", elem_id="repo")
            self.token = gr.Textbox(label="Token", type="password", placeholder="hf_…", elem_id="token")
            self.push = gr.Button("Push, as a private repository", elem_id="push_button")

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        quick = private | {
            "concurrency_limit": 4,
            "outputs": [self.gallery, self.gathered, self.images, self.masks, self.message],
            "show_progress_on": self.gallery,
        }
        watched = [self.message, self.facts, self.slider, self.caption, self.curve, self.download, self.push_box]
        self.tab.select(self.app.warm, None, None, queue=False, show_progress="hidden", **private)
        started = self.start.click(self.wait, None, self.message, queue=False, show_progress="hidden", **private)
        chosen = [event for files in (self.images, self.masks) for event in (files.upload, files.delete)]
        events = [
            gr.on(chosen, self.add_files, [self.images, self.masks, self.session], **quick),
            self.drawn.click(self.take_drawn, [self.session], **quick),
            self.add_painted.click(self.take_painted, [self.editor, self.session], **quick),
            self.clear.click(self.remove_all, [self.session], **quick),
            started.then(
                self.run,
                [self.session, self.method, self.steps],
                [*watched, self.adapter, self.start, self.cancel],
                concurrency_limit=1,
                concurrency_id="adapt",
                show_progress="hidden",
                **private,
            ),
            self.push.click(
                self.publish,
                [self.session, self.repo, self.token],
                [self.message, self.token],
                concurrency_limit=2,
                **private,
            ),
        ]
        self.cancel.click(self.stop, [self.session], [self.message], concurrency_limit=4, **private)
        for event in events:
            event.then(kept, self.session, self.session, show_progress="hidden", **private)

    def add_files(self, images: list[str] | None, masks: list[str] | None, session: Session) -> Update:
        """Uploaded images and masks are to be learned from as soon as each image has its mask."""
        images, masks = images or [], masks or []
        if not images and not masks:
            return {self.gathered: _gathered(session.pairs)}
        if len(images) != len(masks):
            missing = "masks" if len(masks) < len(images) else "images"
            return {self.gathered: note(f"{len(images)} images and {len(masks)} masks: choose the {missing} too.")}
        added = self._added(session, lambda: read_pairs(images, masks, self.app.max_pixels))
        return added | ({self.images: None, self.masks: None} if self.gallery in added else {})

    def take_drawn(self, session: Session) -> Update:
        """The drawn images are to be learned from."""
        images, masks = ([*map(str, paths)] for paths in zip(*self.app.taught))
        return self._added(session, lambda: read_pairs(images, masks, self.app.max_pixels), replace=True)

    def take_painted(self, painted: dict[str, Any] | None, session: Session) -> Update:
        """A painted image is to be learned from."""

        def pairs() -> list[Pair]:
            if painted is None or painted["background"] is None:
                raise UserError("there is no image to paint on", fix="open one first")
            height, width = painted["background"].shape[:2]
            if height * width > self.app.max_pixels:
                raise UserError(f"{width}x{height} pixels are too many here", fix="make the image smaller")
            return [painted_pair(painted["background"], painted["layers"], f"painted_{len(session.pairs) + 1}.png")]

        return self._added(session, pairs)

    def remove_all(self, session: Session) -> Update:
        """Nothing is to be learned from."""
        with session.lock:
            session.pairs = []
        return {self.gallery: None, self.gathered: NONE_YET, self.images: None, self.masks: None}

    def _added(self, session: Session, pairs: Any, replace: bool = False) -> Update:
        with session.lock:
            try:
                all_pairs = [*([] if replace else session.pairs), *pairs()]
                if len(all_pairs) > MOST_PAIRS:
                    raise UserError(f"{len(all_pairs)} images are more than {MOST_PAIRS}", fix="remove some")
                session.pairs = all_pairs
            except UserError as error:
                return {self.gathered: complaint(str(error))}
        self.app.warm()
        held_out = len(all_pairs) - 1
        items = [(p.shown(), "held out" if i == held_out else f"{i + 1}") for i, p in enumerate(all_pairs)]
        update = {self.gallery: items, self.gathered: _gathered(all_pairs)}
        return update | ({self.message: EMPTY} if session.job is None else {})

    def wait(self) -> str:
        """Adapt was pressed: said before the queue lets the training begin."""
        return note("Starting; if somebody else's training is running, this one waits for its end.")

    def run(self, session: Session, method: str, steps: int) -> Iterator[Update]:
        """Train, and show it until it is over.

        A generator is resumed by any thread, so it must not hold the session's lock while it yields.
        """
        try:
            job = self._begin(session, method, steps)
        except UserError as error:
            yield {self.message: complaint(str(error))}
            return
        running = {self.start: gr.Button(interactive=False), self.cancel: gr.Button(interactive=True)}
        over = {self.start: gr.Button(interactive=True), self.cancel: gr.Button(interactive=False)}
        fresh = {
            self.download: gr.DownloadButton(value=None, visible=False),
            self.push_box: gr.Accordion(visible=False),
            self.adapter: gr.Dropdown(self.app.listed(session)),
            self.slider: gr.ImageSlider(None, visible=False),
            self.caption: "",
        }
        yield running | fresh | {self.facts: "", self.curve: ""}
        shown: tuple[str, int, int] | None = None
        while not (now := job.progress()).is_over:
            if (looks := (now.state, now.step, 0 if now.scores else int(now.seconds))) != shown:
                shown = looks
                yield self._watched(job, now)
            time.sleep(_POLL)
        try:
            yield over | self._watched(job, now) | self._end(session, job, now)
        except UserError as error:
            yield over | {self.message: complaint(str(error))}
        self.app.warm()

    def _begin(self, session: Session, method: str, steps: int) -> AdaptJob:
        with session.lock:
            check_pairs(session.pairs)
            job = self.app.job(session.pairs, method, steps)
            self.app.leave(session)  # the last training's adapter makes room
            session.with_job(job)
        return job

    def stop(self, session: Session) -> Update:
        """End the training."""
        if session.job is None or session.job.progress().is_over:
            return {self.message: note("No training is running.")}
        session.job.cancel()
        return {self.message: note("Cancelled.")}

    def publish(self, session: Session, repo: str, token: str) -> Update:
        """Push the adapter with the visitor's token, which is forgotten."""
        try:
            if session.job is None or session.job.progress().state != "finished":
                raise UserError("there is no adapter yet", fix="let a training finish first")
            if not (token or "").strip():  # never that of the machine
                raise UserError("type a token with write access", fix="it is used for this push alone")
            address = push_folder(
                session.job.adapter, (repo or "").strip(), token=token.strip(), again="the button Push"
            )
        except UserError as error:
            return {self.message: complaint(str(error)), self.token: ""}
        return {self.message: note(f"Pushed: {address}"), self.token: ""}

    def _watched(self, job: AdaptJob, now: Progress) -> Update:
        said = {
            "starting": f"Starting: Python loads its libraries, {now.seconds:.0f} s.",
            "preparing": f"Preparing: SAM is loaded and looks at the images, {now.seconds:.0f} s.",
            "training": f"Training, step {now.step} of {now.total}.",
            "measuring": "Measuring the adapter…",
        }
        update: Update = {self.message: note(said.get(now.state, ""))}
        if now.scores:
            first, last = now.scores[0][1], now.scores[-1][1]
            values = {"IoU before": f"{first:.3f}", "IoU now": f"{last:.3f}", "Step": f"{now.step} / {now.total}"}
            update[self.facts] = facts(values | {"Time": f"{now.seconds:.0f} s"})
            update[self.slider] = gr.ImageSlider(_pictures(job.pairs[-1], now), visible=True)
            sides = (
                ("before: zero-shot SAM", MASK_COLOURS["zero_shot"]),
                ("held-out image, now", MASK_COLOURS["adapted"]),
            )
            update[self.caption] = caption(*sides)
            update[self.curve] = curve("IoU of the held-out image", now.scores, now.total)
        return update

    def _end(self, session: Session, job: AdaptJob, now: Progress) -> Update:
        if now.state == "cancelled":
            return {self.message: note("Cancelled: nothing was kept.")}
        if now.state == "failed":
            return {self.message: complaint(now.message)}
        with session.lock:
            session.own = {str(job.adapter): "Yours: trained in the tab Adapt"}
        before, after = (job.metrics()["test"]["none"][name]["iou"] for name in ("zero_shot", "adapted"))
        text = (
            f"Done in {now.seconds:.0f} s: IoU of the held-out image {before:.3f} → {after:.3f} (best checkpoint). "
            "Your adapter is in the list of the tab Segment."
        )
        return {
            self.message: note(text),
            self.download: gr.DownloadButton(value=str(job.zipped()), visible=True),
            self.push_box: gr.Accordion(visible=True),
            self.adapter: gr.Dropdown(self.app.listed(session)),
        }


def _gathered(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return NONE_YET
    if len(pairs) < FEWEST_PAIRS:
        return note("1 image with its mask. Give at least one more: the last one is held out.")
    return note(f"{len(pairs)} images with masks; the last one is held out. Choose a method, then Adapt.")


def _pictures(pair: Pair, now: Progress) -> tuple[np.ndarray, np.ndarray]:
    """The held-out picture with the mask of zero-shot SAM, and with the latest."""
    shown, steps = pair.picture.shown, sorted(now.masks)
    masks = [resize_mask(now.masks[step], shown.shape[:2]) for step in (steps[0], steps[-1])]
    return overlay(shown, masks[0], MASK_COLOURS["zero_shot"]), overlay(shown, masks[1], MASK_COLOURS["adapted"])
