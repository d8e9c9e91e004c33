"""The page's functions for programs: `/segment`, `/route` and `/adapt`, for `gradio_client`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import UserError
from .app import DemoApp
from .engine import route_image, segment_image
from .images import read_picture
from .pictures import save_results
from .route_tab import MOST_IMAGES
from .session import Clicks, ImageState, Session
from .training_images import read_pairs


_POLL = 0.5


def _numbers(depth: int, label: str) -> gr.JSON:
    """An input of numbers in lists of so many levels. `gr.JSON` by itself has no schema that MCP clients take."""
    schema: dict[str, Any] = {"type": "number"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    component = gr.JSON(label=label, value=[])
    component.api_info = lambda: schema  # type: ignore[method-assign]
    return component


class Api:
    """Adds the endpoints to the current Blocks; nothing of them is seen on the page."""

    def __init__(self, app: DemoApp, session: gr.State) -> None:
        self.app = app
        with gr.Row(visible=False):
            image = gr.File(label="image")
            adapter = gr.Textbox(label="adapter", value="")
            points, box = _numbers(2, "points"), _numbers(1, "box")
            domain = gr.Textbox(label="domain", value="")
            images, masks = (gr.File(label=name, file_count="multiple") for name in ("images", "masks"))
            method, steps = gr.Textbox(label="method", value="hq"), gr.Number(label="steps", value=60, precision=0)
            mask, overlay, archive = (gr.File(label=name) for name in ("mask", "overlay", "adapter_zip"))
            about = gr.JSON(label="about")
            call = gr.Button()
        segment: list[Any] = [self.segment, [image, adapter, points, box, domain], [mask, overlay, about]]
        adapt: list[Any] = [self.adapt, [images, masks, method, steps], [archive, about]]
        if app.args.mcp:
            segment[0], adapt[0] = self.segment_alone, self.adapt_alone
        else:
            for each in segment, adapt:
                each[1], each[2] = [session, *each[1]], [*each[2], session]
        call.click(segment[0], segment[1], segment[2], api_name="segment", concurrency_limit=4)
        call.click(self.route, [images, adapter], about, api_name="route", concurrency_limit=2)
        call.click(adapt[0], adapt[1], adapt[2], api_name="adapt", concurrency_limit=1, concurrency_id="adapt")

    def segment(
        self, session: Session, image: str | None, adapter: str, points: Any, box: Any, domain: str
    ) -> tuple[str, str, dict, Session]:
        """Segment an image, as `hf-sam-adapt predict` does.

        Args:
            image: an image file.
            adapter: as the page's list names it, with or without method and size, or a Hub id; empty for plain SAM.
            points: `[[x, y, label], …]` in pixels, label 1 on the object, 0 off it; empty for none.
            box: `[x0, y0, x1, y1]` in pixels, instead of points; empty for none.
            domain: of a pool, or `base`; empty: its router chooses.

        Returns:
            The mask, the overlay, and `{"iou_estimate", "domain", "seconds", "foreground" or "classes"}`.
        """
        try:
            state = ImageState(read_picture(image, self.app.max_pixels))
            entry = self.app.entry(adapter, session)
            prompt = _clicks(points, box).prompt()
            if prompt.kind != "none" and entry.predictor.classes is not None:
                raise UserError("this adapter names the class of every pixel and takes no points and no box")
            result = segment_image(state, entry, prompt, domain or None)
            variant = "zero_shot" if entry.is_plain else "adapted"
            paths = save_results(Path(tempfile.mkdtemp(dir=self.app.files(session))), state.picture, result, variant)
        except UserError as error:
            raise gr.Error(str(error)) from error
        about: dict[str, Any] = {"iou_estimate": result.estimate, "domain": result.domain, "seconds": result.seconds}
        if result.classes is None:
            about["foreground"] = float(result.mask.mean())
        else:
            about["classes"] = {name: float((result.mask == i).mean()) for i, name in enumerate(result.classes)}
        return str(paths[0]), str(paths[1]), about, session

    def route(self, images: list[str] | None, adapter: str) -> list[dict[str, Any]]:
        """Ask a pool's router where images belong.

        Args:
            images: image files.
            adapter: a pool, as in `/segment`; empty for the first of the page's list.

        Returns:
            Per image `{"file", "domain", "scores": {domain: score}, "distance", "threshold"}`; the domain `base` is
            unknown, plain SAM: the distance to the training images is above the threshold (both null without one).
        """
        try:
            if len(images or ()) > MOST_IMAGES:
                raise UserError(f"{len(images or ())} images are more than {MOST_IMAGES}", fix="send fewer")
            pools = self.app.pools()
            entry = self.app.entry(adapter or (pools[0][1] if pools else ""))
            records = []
            for file in images or ():
                routing = route_image(ImageState(read_picture(file, self.app.max_pixels)), entry)
                scores = dict(zip(entry.pool.domains, routing.scores[0].tolist()))  # type: ignore[union-attr]
                distance = None if routing.distances is None else routing.distances[0].item()
                record = {"file": Path(file).name, "domain": routing.domains[0], "scores": scores}
                records.append(record | {"distance": distance, "threshold": routing.threshold})
            return records
        except UserError as error:
            raise gr.Error(str(error)) from error

    def adapt(
        self, session: Session, images: list[str] | None, masks: list[str] | None, method: str, steps: float
    ) -> Iterator[tuple[str | None, dict[str, Any], Session]]:
        """Train on images with masks, the last of which is held out.

        Args:
            images, masks: files, paired by name or by place.
            method: one of decoder, hq, conv_lora, sam_adapter, lora.
            steps: optimizer steps.

        Yields:
            Progress `{"state", "step", "iou"}`, and at the end the adapter as a zip with its `metrics.json`.
        """
        try:
            pairs = read_pairs(images or [], masks or [], self.app.max_pixels)
            job = self.app.job(pairs, method, steps)
            with session.lock:
                session.with_job(job)
            while not (now := job.progress()).is_over:
                iou = now.scores[-1][1] if now.scores else None
                yield None, {"state": now.state, "step": now.step, "iou": iou}, session
                time.sleep(_POLL)
            if now.state != "finished":
                raise UserError(now.message or "the training was cancelled")
            about = {"state": "finished", "step": now.step, "scores": now.scores} | job.metrics()
            yield str(job.zipped()), about, session
        except UserError as error:
            raise gr.Error(str(error)) from error

    # MCP clients have no session, and Gradio's server for them fails on functions that take a `gr.State`.

    def segment_alone(
        self, image: str | None, adapter: str, points: Any, box: Any, domain: str
    ) -> Iterator[tuple[str, str, dict]]:
        session = Session()
        try:
            yield self.segment(session, image, adapter, points, box, domain)[:3]
        finally:
            self.app.leave(session)

    def adapt_alone(
        self, images: list[str] | None, masks: list[str] | None, method: str, steps: float
    ) -> Iterator[tuple[str | None, dict[str, Any]]]:
        session = Session()
        try:
            for archive, about, _ in self.adapt(session, images, masks, method, steps):
                yield archive, about
        finally:
            self.app.leave(session)

    # What their tools are called, and say of themselves.
    segment_alone.__name__, segment_alone.__doc__ = segment.__name__, segment.__doc__
    adapt_alone.__name__, adapt_alone.__doc__ = adapt.__name__, adapt.__doc__


def _clicks(points: Any, box: Any) -> Clicks:
    """The prompt out of JSON.

    Raises:
        UserError: both, or another form than the documented one.
    """
    if points and box:
        raise UserError("both given", key="points, box", fix="give one of them")
    clicks = Clicks()
    try:
        if box:
            x0, y0, x1, y1 = map(float, box)
            return clicks.with_corner(x0, y0).with_corner(x1, y1)
        for x, y, label in points or ():
            if label not in (0, 1):
                raise ValueError
            clicks = clicks.with_point(float(x), float(y), int(label))
    except (TypeError, ValueError):
        raise UserError("points are [[x, y, 0 or 1], …], a box is [x0, y0, x1, y1], in pixels") from None
    return clicks
