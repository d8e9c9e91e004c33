"""Prediction of files: read, segmented in batches, written in every format asked for, and listed in an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from ...data.channels import displayable, load_image
from ...data.inputs import find_images, output_names
from ...data.scenes import scene_header
from ...data.volumes.slices import SliceKeys
from ...errors import UserError
from ...inference.instances import POINTS_PER_SIDE, InstanceSource
from ...inference.loading import load_for_inference
from ...inference.predictor import Prediction, SamAdaptPredictor, check_options, check_prompt, logit_of
from ...inference.tiled import Route
from ...inference.uncertainty import uncertainty
from ...names import check_route
from ...prompts import Prompt
from ...sam.attention import Kind
from ...sam.fingerprint import weights_digest
from .formats import make_writers
from .guard import check_checked, check_output_dir, check_targets, other_labels
from .index import Index
from .maps import preview_file
from .nifti import predict_volume, slice_header, slice_keys, volume_targets, volumes_among
from .result import ImageResult, WriteOptions, Writer, described
from .scene import check_scenes, place_note, predict_scene, scenes_among, usual_formats


T = TypeVar("T")


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
    points_per_side: int = POINTS_PER_SIDE,
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
    slice_axis: str | None = None,
    window: Sequence[float] | None = None,
    neighbours: int | None = None,
    batch_size: int = 4,
    precision: str = "no",
    attention: Kind = "auto",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Segments images and writes for each what the writers of `format` write, `predictions.json` for all.

    Their names begin with the file's stem; files of one stem are told apart by their folder and, where that is not
    enough, by a number. Results have the size of their image as it is shown (EXIF rotation applied). Files of the same
    name in `output_dir`, as an earlier call leaves them, are overwritten; an input, a checked annotation and what no
    prediction has written never are. What is interrupted leaves a list of what is done.

    Args:
        inputs: files, folders (their images, not those of subfolders) and glob patterns (`**` for subfolders); or
            volumes, NIfTI files and folders of a DICOM series, of which every slice is segmented.
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
        format: names in `WRITERS`; None = "nifti" of volumes, "geotiff" where every image lies on a map and the extra
            `geo` is installed, else "png".
        probability: also write the probabilities, where the format has a place for them.
        threshold: probability above which a pixel is foreground; not for a model with classes.
        simplify: pixels by which outlines may move so that polygons have fewer corners, see `outlines`; 0 = exact.
        rank: "uncertain" puts the images of which the model is least sure first, see `uncertainty`.
        skip_existing: leave images as they are whose results an earlier call with the same settings has written, of
            the same files.
        tile, overlap, route: see `SamAdaptPredictor.predict`; unset, tile and overlap are those of the adapter's
            training. A raster whose formats are all of maps is read and written by windows, whatever its size, unless
            instances or a rank are asked for.
        slice_axis, window, neighbours: how volumes are cut, see `SliceKeys`; None = as in the adapter's training.
        batch_size: images, or tiles of an image, encoded together.
        precision: "no", "bf16" or "fp16" autocast.
        attention: how the encoder computes its attention, see `use_fast_attention`.
        progress: show a bar.

    Returns:
        What `predictions.json` lists, an entry per image: `file`, `source` (see `source_of`), what each writer says of
        its files (`mask` and `overlay`, names in `output_dir`), `height`, `width`, `foreground` (fraction of the
        pixels), `prompt`, `logits` (`min`, `mean`, `max`), and `iou_estimate`, SAM's own estimate (None for an adapter
        that did not train it); of a pool also `domain`, and where its router chose `router` (domain -> probability;
        with `route` "tile" the mean over the tiles). Of a model with classes `classes` (name -> fraction of the
        pixels) stands for foreground, logits and estimate. With `instances` also `instances`, their number, with
        `rank` `uncertainty`, and `skipped` where an earlier result was kept. An image that cannot be read has only
        `file` and `error`; the others are segmented.

    Raises:
        UserError: no image found, none that can be read, a prompt outside an image, an output that would replace an
            input or what no prediction has written, other settings than those of the results to skip, or a model that
            cannot be loaded. Every header is read before anything is written.
    """
    prompt = _prompt(box, point)
    kinds = {prompt.kind} - {"none"}
    check_options(instances, kinds, batch_size=batch_size, points_per_side=points_per_side, min_score=min_score)
    logit_of(threshold)
    if not 0 <= simplify < np.inf:
        raise UserError(f"{simplify} is not a number of pixels", key="simplify", fix="0 keeps every corner")
    folder = Path(output_dir).expanduser()
    check_output_dir(folder)
    make_writers(format or ["png"], folder, WriteOptions(), instances is not None)
    inputs = [os.path.expanduser(name) for name in inputs]
    find_images(inputs, arrays=True)  # what is missing is said before a model is loaded
    loaded = load_for_inference(adapter, model, attention)
    weights = weights_digest(loaded.model)
    predictor = SamAdaptPredictor.from_loaded(loaded, device=PartialState().device, precision=precision)
    predictor.check([prompt], domain, instances, threshold)
    options = WriteOptions(predictor.classes, probability, simplify, rank is not None)
    channels = predictor.processor.channels  # says how images are read
    paths = find_images(inputs, arrays=channels is not None)
    volumes = volumes_among(paths)
    writers = make_writers(
        format or (["nifti"] if volumes else usual_formats(paths)), folder, options, instances is not None
    )
    cutting = slice_keys(predictor.processor, volumes, writers, slice_axis, window, neighbours)
    if tile is None and (trained := predictor.processor.tiling) is not None:
        tile, overlap = trained["tile"], trained["overlap"] if overlap is None else overlap
    tiles, notes = predictor.tiles(tile, overlap)
    check_route(route, tile)
    names = dict(zip(paths, output_names(paths)))
    how: dict[str, Any] = {"points_per_side": points_per_side, "min_score": min_score, "threshold": threshold}
    cut_up: dict[str, Any] = {"tile": tile, "overlap": overlap, "route": route}
    settings: dict[str, Any] = {"domain": domain, "instances": instances}
    settings |= {"simplify": simplify, "precision": precision}
    settings |= {**how, **cut_up, **_describe(prompt)}
    settings |= {"slices": cutting.plain()} if volumes else {}
    head = {"adapter": adapter, "model": model, "weights": weights, "settings": settings}
    index = Index(folder, head, paths, writers, rank)
    kept = index.take_over(names) if skip_existing else []
    check_checked(index)
    sizes, index.failed = _readable(
        [path for path in paths if path not in kept],
        lambda path: slice_header(path, cutting) if volumes else scene_header(str(path), channels),
    )
    if not sizes and not kept:
        raise index.first_failure()
    for path, header in sizes.items():
        check_prompt(prompt, (header.height, header.width), where=path)

    images_only = [] if volumes else list(sizes)
    by_windows = scenes_among(images_only, writers, tiles, instances is None and rank is None)
    check_scenes(images_only, writers, by_windows)
    targets = {path: _targets(path, names[path], writers, cutting if volumes else None) for path in sizes}
    for path in by_windows:
        targets[path].append(preview_file(names[path]))
    check_targets(index, targets, names)
    for note in [*notes, *other_labels(index, names)] if progress else ():
        print(note)
    folder.mkdir(parents=True, exist_ok=True)
    cut = logit_of(threshold)
    where: dict[str, Any] = {"prompt": prompt, "domain": domain, "route": route}

    def segmented(images: list[np.ndarray]) -> list[Prediction]:
        return predictor.predict(images, prompt, domain, instances, batch_size=batch_size, **how, **cut_up)

    def noted(path: Path) -> dict[str, str]:
        note = place_note(path, names[path], writers)
        return {} if note is None else {"note": note}

    try:
        with tqdm(total=len(sizes), desc="predict", unit="image", disable=not progress, leave=False) as bar:
            for path in by_windows:
                assert tiles is not None
                index.begin()
                try:
                    record = predict_scene(
                        predictor, path, names[path], writers, options, tiles, cut, batch_size, **where
                    )
                    index.note(path, record | _describe(prompt) | noted(path))
                except UserError as error:
                    index.failed[path] = error
                bar.update()
            for path in sizes if volumes else ():
                index.begin()
                try:
                    unsure = None if rank is None else threshold
                    record = predict_volume(path, names[path], cutting, segmented, writers, unsure, batch_size)
                    index.note(path, record | _describe(prompt))
                except UserError as error:
                    index.failed[path] = error
                bar.update()
            rest = [path for path in images_only if path not in by_windows]
            for start in range(0, len(rest), batch_size):
                chosen = rest[start : start + batch_size]
                images, unread = _readable(chosen, lambda path: load_image(path, channels))
                index.failed |= unread
                for (path, image), prediction in zip(images.items(), segmented(list(images.values()))):
                    result = ImageResult(path, names[path], displayable(image), prediction)
                    record = described(prediction) | _describe(prompt) | noted(path)
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


def _targets(path: Path, name: str, writers: Sequence[Writer], cutting: SliceKeys | None) -> list[str]:
    """The files that are written of an image, or of a volume that is cut."""
    if cutting is not None:
        return volume_targets(path, name, cutting, writers)
    return [file for writer in writers for file in writer.targets(path, name)]


def _describe(prompt: Prompt) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": prompt.kind}
    if prompt.kind == "box":
        described["box"] = np.asarray(prompt.boxes)[0].tolist()
    elif prompt.kind == "point":
        described["point"] = np.asarray(prompt.points)[0, 0].tolist()
    return {"prompt": described}
