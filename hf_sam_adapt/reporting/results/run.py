"""Prediction of files: read, segmented in batches, written in every format asked for, and listed in an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from ...data.channels import displayable, load_image
from ...data.inputs import find_images, output_names
from ...data.scenes import scene_header
from ...errors import UserError
from ...inference.instances import InstanceSource
from ...inference.loading import load_for_inference
from ...inference.predictor import Prediction, SamAdaptPredictor, check_options, check_prompt, logit_of
from ...inference.tiled import Route
from ...inference.uncertainty import rank_key, uncertainty
from ...names import check_route
from ...prompts import Prompt
from ...sam.attention import Kind
from ..report import write_json
from .formats import make_writers
from .polygons import LabelmeWriter, checked_annotations
from .result import ImageResult, WriteOptions, Writer
from .scene import check_scenes, lost_place, predict_scene, scenes_among, usual_formats


T = TypeVar("T")
INDEX = "predictions.json"


def predict(
    inputs: Sequence[str],
    adapter: str | None = None,
    *,
    model: str | None = None,
    domain: str | None = None,
    output_dir: str | Path = "predictions",
    box: Sequence[float] | None = None,
    point: Sequence[float] | None = None,
    instances: InstanceSource | None = None,
    points_per_side: int = 16,
    min_score: float = 0.0,
    format: Sequence[str] | None = None,
    probability: bool = False,
    threshold: float = 0.5,
    simplify: float = 1.0,
    rank: str | None = None,
    skip_existing: bool = False,
    tile: int | Literal["auto"] | None = None,
    overlap: int | Literal["auto"] | None = None,
    route: Route = "image",
    batch_size: int = 4,
    precision: str = "no",
    attention: Kind = "auto",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Segments images and writes for each what the writers of `format` write, `predictions.json` for all.

    Their names begin with the file's stem; files of one stem are told apart by their folder and, where that is not
    enough, by a number. Results have the size of their image as it is shown (EXIF rotation applied). Files of the same
    name in `output_dir`, as an earlier call leaves them, are overwritten; an input or a checked annotation never is.
    What is interrupted leaves a list of what is done.

    Args:
        inputs: files, folders (their images, not those of subfolders) and glob patterns (`**` for subfolders).
        adapter: run folder, adapter folder or Hub id; None for zero-shot SAM.
        model: base model, by default the adapter's own.
        domain: of a pool of domains, or "base"; None: its router chooses one for each image.
        output_dir: created if needed.
        box: (x0, y0, x1, y1), inclusive pixels; without box and point no prompt is given.
        point: (x, y), a pixel on the object.
        instances: also find the objects of each image, see `find_instances`: `instances.json` in COCO's format and
            `<name>_instances.png`; polygons are then theirs.
        points_per_side: of the grid of `instances="grid"`.
        min_score: instances of a lower score are left out.
        format: names in `WRITERS`; None = "geotiff" where every image lies on a map and the extra `geo` is installed,
            else "png".
        probability: also write the probabilities, where the format has a place for them.
        threshold: probability above which a pixel is foreground; not for a model with classes.
        simplify: pixels by which outlines may move so that polygons have fewer corners, see `outlines`; 0 = exact.
        rank: "uncertain" puts the images of which the model is least sure first, see `uncertainty`.
        skip_existing: leave images as they are whose results an earlier call with the same settings has written since
            they were changed.
        tile, overlap, route: see `SamAdaptPredictor.predict`. A raster whose formats are all of maps is read and
            written by windows, whatever its size, unless instances or a rank are asked for.
        batch_size: images, or tiles of an image, encoded together.
        precision: "no", "bf16" or "fp16" autocast.
        attention: how the encoder computes its attention, see `use_fast_attention`.
        progress: show a bar.

    Returns:
        What `predictions.json` lists, an entry per image: `file`, what each writer says of its files (`mask` and
        `overlay`, names in `output_dir`), `height`, `width`, `foreground` (fraction of the pixels), `prompt`, `logits`
        (`min`, `mean`, `max`), and `iou_estimate`, SAM's own estimate (None for an adapter that did not train it); of
        a pool also `domain`, and where its router chose `router` (domain -> probability). Of a model with classes
        `classes` (name -> fraction of the pixels) stands for foreground, logits and estimate. With `instances` also
        `instances`, their number, with `rank` `uncertainty`, and `skipped` where an earlier result was kept. An image
        that cannot be read has only `file` and `error`; the others are segmented.

    Raises:
        UserError: no image found, none that can be read, a prompt outside an image, an output that would replace an
            input, other settings than those of the results to skip, or a model that cannot be loaded. Every header is
            read before anything is written.
    """
    prompt = _prompt(box, point)
    kinds = {prompt.kind} - {"none"}
    check_options(instances, kinds, batch_size=batch_size, points_per_side=points_per_side)
    logit_of(threshold)
    if not 0 <= simplify < np.inf:
        raise UserError(f"{simplify} is not a number of pixels", key="simplify", fix="0 keeps every corner")
    folder = Path(output_dir)
    make_writers(format or ["png"], folder, WriteOptions(), instances is not None)
    check_route(route, tile)
    find_images(inputs, arrays=True)  # what is missing is said before a model is loaded
    loaded = load_for_inference(adapter, model, attention)
    predictor = SamAdaptPredictor.from_loaded(loaded, device=PartialState().device, precision=precision)
    predictor.check([prompt], domain, instances, threshold)
    options = WriteOptions(predictor.classes, probability, simplify, rank is not None)
    channels = predictor.processor.channels  # says how images are read
    paths = find_images(inputs, arrays=channels is not None)
    writers = make_writers(format or usual_formats(paths), folder, options, instances is not None)
    tiles, notes = predictor.tiles(tile, overlap)
    for note in notes if progress else ():
        print(note)
    names = dict(zip(paths, output_names(paths)))
    _check_outputs(folder, names, writers)
    how: dict[str, Any] = {"points_per_side": points_per_side, "min_score": min_score, "threshold": threshold}
    cut_up: dict[str, Any] = {"tile": tile, "overlap": overlap, "route": route}
    settings = {"domain": domain, "instances": instances, "simplify": simplify, **how, **cut_up, **_describe(prompt)}
    index = Index(folder, {"adapter": adapter, "model": model, "settings": settings}, paths, writers, rank)
    kept = index.take_over(names) if skip_existing else []
    _check_checked(folder, writers, index)
    sizes, index.failed = _readable(
        [path for path in paths if path not in kept], lambda path: scene_header(str(path), channels)
    )
    if not sizes and not kept:
        raise index.first_failure()
    for path, header in sizes.items():
        check_prompt(prompt, (header.height, header.width), where=path)

    by_windows = scenes_among(list(sizes), writers, tiles, instances is None and rank is None)
    check_scenes(list(sizes), writers, by_windows)
    folder.mkdir(parents=True, exist_ok=True)
    cut = logit_of(threshold)
    where: dict[str, Any] = {"prompt": prompt, "domain": domain, "route": route}
    try:
        with tqdm(total=len(sizes), desc="predict", unit="image", disable=not progress, leave=False) as bar:
            for path in by_windows:
                assert tiles is not None
                try:
                    record = predict_scene(
                        predictor, path, names[path], writers, options, tiles, cut, batch_size, **where
                    )
                    index.records[path] = {"file": str(path), **record, **_describe(prompt)}
                except UserError as error:
                    index.failed[path] = error
                bar.update()
            rest = [path for path in sizes if path not in by_windows]
            for start in range(0, len(rest), batch_size):
                chosen = rest[start : start + batch_size]
                images, unread = _readable(chosen, lambda path: load_image(path, channels))
                index.failed |= unread
                results = predictor.predict(
                    list(images.values()), prompt, domain, instances, batch_size=batch_size, **how, **cut_up
                )
                for (path, image), prediction in zip(images.items(), results):
                    result = ImageResult(path, names[path], displayable(image), prediction)
                    record = described(prediction) | _describe(prompt)
                    if (note := lost_place(path, writers)) is not None:
                        record["note"] = note
                    if rank is not None:
                        record["uncertainty"] = uncertainty(prediction, threshold)
                    index.add(path, result, record)
                bar.update(len(chosen))
    finally:
        if index.records:
            index.write()
    if not index.records:
        raise index.first_failure()
    return index.listed()


@dataclass
class Index:
    """What is known of every input, and `predictions.json` with it.

    Attributes:
        folder: of the results.
        head: adapter, model and settings, which a later call compares.
        paths: of the inputs, in their order.
        writers: of the formats.
        rank: whether the least sure come first.
        records: of the images that are done.
        failed: why others are not.
    """

    folder: Path
    head: dict[str, Any]
    paths: list[Path]
    writers: list[Writer]
    rank: str | None
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Path, UserError] = field(default_factory=dict)

    def take_over(self, names: Mapping[Path, str]) -> list[Path]:
        """The images whose results an earlier call has written, with their records.

        Raises:
            UserError: that call had other settings, or its file is damaged.
        """
        file = self.folder / INDEX
        if not file.is_file():
            return []
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            earlier = {record["file"]: record for record in before["predictions"] if "error" not in record}
            head = {key: before[key] for key in self.head}
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "leave skip_existing out"
            raise UserError(f"not the list of an earlier prediction ({error!r})", where=file, fix=fix) from error
        if head != json.loads(json.dumps(self.head)):
            changed = _differences(head, self.head)
            fix = "leave it out, or name another output_dir"
            raise UserError(f"the results in {self.folder} have other {changed}", key="skip_existing", fix=fix)
        since = file.stat().st_mtime_ns
        for path in self.paths:
            record = earlier.get(str(path))
            if record is None or (self.rank is not None and "uncertainty" not in record):
                continue
            done = all(writer.is_done(record, names[path]) for writer in self.writers)
            if done and path.exists() and path.stat().st_mtime_ns <= since:
                self.records[path] = record | {"skipped": True}
        for writer in self.writers if self.records else ():
            writer.keep(list(self.records.values()))
        return list(self.records)

    def add(self, path: Path, result: ImageResult, record: dict[str, Any]) -> None:
        """Write an image's results, and keep what is to be said of it."""
        written: dict[str, Any] = {}
        for writer in self.writers:
            written |= writer.write(result)
        self.records[path] = {"file": str(path), **written, **record}

    def listed(self) -> list[dict[str, Any]]:
        """A record for each image that was reached; ranked where that was asked for, those with an error last."""
        if self.rank is not None:
            done = sorted(self.records.values(), key=lambda record: rank_key(record["uncertainty"]), reverse=True)
            return done + [{"file": str(path), "error": str(error)} for path, error in self.failed.items()]
        known = (path for path in self.paths if path in self.records or path in self.failed)
        return [self.records.get(path) or {"file": str(path), "error": str(self.failed[path])} for path in known]

    def write(self) -> None:
        """The files for all images."""
        for writer in self.writers:
            writer.finish([record for record in self.listed() if "error" not in record])
        write_json(self.folder / INDEX, {**self.head, "predictions": self.listed()})

    def first_failure(self) -> UserError:
        """The error where no image could be read."""
        first = next(iter(self.failed.values()))
        count = f" (and so {len(self.failed) - 1} further images)" if len(self.failed) > 1 else ""
        return first.replace(problem=f"{first.problem}{count}")


def described(prediction: Prediction) -> dict[str, Any]:
    """The numbers of a prediction that `predictions.json` has."""
    height, width = prediction.mask.shape
    about: dict[str, Any] = {"height": height, "width": width}
    if prediction.classes is None:
        logits = prediction.logits
        about["foreground"] = float(prediction.mask.mean())
        about["logits"] = {"min": float(logits.min()), "mean": float(logits.mean()), "max": float(logits.max())}
        about["iou_estimate"] = prediction.score
    else:
        about["classes"] = prediction.classes
    if prediction.domain is not None:
        about["domain"] = prediction.domain
    if prediction.router_scores is not None:
        about["router"] = prediction.router_scores
    return about


def _prompt(box: Sequence[float] | None, point: Sequence[float] | None) -> Prompt:
    """The one prompt, in image coordinates."""
    if box is not None and point is not None:
        raise UserError("both given", key="box, point", fix="give one of them")
    if box is not None:
        return Prompt.box(*box)
    return Prompt("none") if point is None else Prompt.point(*point)


def _readable(paths: Sequence[Path], read: Callable[[Path], T]) -> tuple[dict[Path, T], dict[Path, UserError]]:
    """What `read` returns of the images that can be read, and what is wrong with the others."""
    values, failed = {}, {}
    for path in paths:
        try:
            values[path] = read(path)
        except UserError as error:
            failed[path] = error
    return values, failed


def _check_outputs(folder: Path, names: Mapping[Path, str], writers: Sequence[Writer]) -> None:
    """Refuse results that would replace an input."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", key="output_dir", fix="name a folder")
    inputs = {path.resolve() for path in names}
    places = {path.parent for path in inputs}
    for writer in writers:
        for output in (folder / file for name in names.values() for file in writer.files(name)):
            beside = output.parent.resolve() in places and output.parent != folder
            if output.resolve() in inputs or beside:
                raise UserError(
                    f"{output} is an input or lies beside one, and would be overwritten",
                    key="output_dir",
                    fix="name another folder",
                )


def _check_checked(folder: Path, writers: Sequence[Writer], index: Index) -> None:
    """Refuse to replace annotations that a person has checked."""
    if not any(isinstance(writer, LabelmeWriter) for writer in writers):
        return
    kept = {folder / record[LabelmeWriter.key] for record in index.records.values()}
    checked = [path for path in checked_annotations(folder) if path not in kept]
    if checked:
        raise UserError(
            f"{len(checked)} annotations in it are checked, such as {checked[0].name}, and would be replaced",
            key="output_dir",
            fix="name another folder, or give --skip_existing with the settings of before",
        )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The keys that differ, in words."""
    old, new = ({**head, **head["settings"]} for head in (before, after))
    return ", ".join(key for key in new if key != "settings" and old.get(key) != json.loads(json.dumps(new[key])))


def _describe(prompt: Prompt) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": prompt.kind}
    if prompt.kind == "box":
        described["box"] = np.asarray(prompt.boxes)[0].tolist()
    elif prompt.kind == "point":
        described["point"] = np.asarray(prompt.points)[0, 0].tolist()
    return {"prompt": described}
