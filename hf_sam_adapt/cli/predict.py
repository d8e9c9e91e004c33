"""`hf-sam-adapt predict`: masks of image files, at the size of the images."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from ..data.channels import ARRAY_SUFFIX, displayable, load_header, load_image
from ..data.folder import IMAGE_SUFFIXES
from ..data.walk import files_below, is_leftover, one_form
from ..errors import UserError
from ..inference.instances import Instance, InstanceSource, coco_content
from ..inference.loading import load_for_inference
from ..inference.predictor import Prediction, SamAdaptPredictor, check_options, check_prompt
from ..prompts import Prompt
from ..reporting.class_maps import class_colours, class_legend, class_overlay, with_legend
from ..reporting.prompts import draw_instances
from ..reporting.report import MASK_COLOURS, overlay, write_json
from ..sam.attention import Kind
from .arguments import PredictArguments


T = TypeVar("T")


def predict_command(args: PredictArguments) -> int:
    """`predict`, then a line for each image that could not be read, and one that says where the results are.

    Returns:
        Exit status: 1 if an image could not be read, else 0.
    """
    for folder in filter(Path.is_dir, map(Path, args.inputs)):
        below = len(files_below(folder, IMAGE_SUFFIXES)) - len(files_below(folder, IMAGE_SUFFIXES, deep=False))
        if below:
            print(f"{folder}: {below} images in its sub-folders are not read; name those, or '{folder}/**/*.png'")
    records = predict(**vars(args))
    failed = [record for record in records if "error" in record]
    for record in failed:
        print(f"error: {record['error']}", file=sys.stderr)
    masks = len(records) - len(failed)
    print(f"{masks} masks, their overlays and predictions.json are in {args.output_dir}")
    if args.instances:
        count = sum(record.get("instances", 0) for record in records)
        print(f"{count} instances are in {Path(args.output_dir) / 'instances.json'} (COCO, run lengths)")
    if failed:
        print(f"{len(failed)} of {len(records)} images could not be read and have no mask", file=sys.stderr)
    return int(bool(failed))


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
    batch_size: int = 4,
    precision: str = "no",
    attention: Kind = "auto",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Segments images and writes `<name>_mask.png` and `<name>_overlay.png` for each, `predictions.json` for all.

    `<name>` is the file's stem; files of one stem are told apart by their folder and, where that is not enough, by a
    number. A mask is 8-bit, 0 or 255, of the size of its image as it is shown (EXIF rotation applied). Files of the
    same name in `output_dir`, as an earlier call leaves them, are overwritten; an input never is.

    Args:
        inputs: files, folders (their images, not those of subfolders) and glob patterns (`**` for subfolders).
        adapter: run folder, adapter folder or Hub id; None for zero-shot SAM.
        model: base model, by default the adapter's own.
        domain: of a pool of domains, or "base"; None: its router chooses one for each image.
        output_dir: created if needed.
        box: (x0, y0, x1, y1), inclusive pixels; without box and point no prompt is given.
        point: (x, y), a pixel on the object.
        instances: also find the objects of each image, see `find_instances`: `instances.json` in COCO's format and
            `<name>_instances.png`.
        points_per_side: of the grid of `instances="grid"`.
        min_score: instances of a lower score are left out.
        batch_size: images encoded together.
        precision: "no", "bf16" or "fp16" autocast.
        attention: how the encoder computes its attention, see `use_fast_attention`.
        progress: show a bar.

    Returns:
        What `predictions.json` lists, an entry per image: `file`, `mask` and `overlay` (names in `output_dir`),
        `height`, `width`, `foreground` (fraction of the pixels), `prompt`, `logits` (`min`, `mean`, `max`), and
        `iou_estimate`, SAM's own estimate (None for an adapter that did not train it); of a pool also `domain`. Of a
        model with classes the mask is a palette PNG whose values are the classes, and `classes` (name -> fraction of
        the pixels) stands for foreground, logits and estimate. With `instances` also `instances`, their number. An
        image that cannot be read has only `file` and `error`; the others are segmented.

    Raises:
        UserError: no image found, none that can be read, a prompt outside an image, an output that would replace an
            input, or a model that cannot be loaded. Every header is read before anything is written.
    """
    prompt = _prompt(box, point)
    kinds = {prompt.kind} - {"none"}
    check_options(instances, kinds, batch_size=batch_size, points_per_side=points_per_side)
    find_images(inputs, arrays=True)  # what is missing is said before a model is loaded
    loaded = load_for_inference(adapter, model, attention)
    predictor = SamAdaptPredictor.from_loaded(loaded, device=PartialState().device, precision=precision)
    predictor.check([prompt], domain, instances)
    channels = predictor.processor.channels  # says how images are read
    paths = find_images(inputs, arrays=channels is not None)
    sizes, failed = _readable(paths, lambda path: load_header(str(path), channels))
    if not sizes:
        first = next(iter(failed.values()))
        count = f" (and so {len(failed) - 1} further images)" if len(failed) > 1 else ""
        raise first.replace(problem=f"{first.problem}{count}")
    for path, header in sizes.items():
        check_prompt(prompt, (header.height, header.width), where=path)
    folder = Path(output_dir)
    names = dict(zip(paths, output_names(paths)))
    _check_outputs(folder, paths, list(names.values()))

    folder.mkdir(parents=True, exist_ok=True)
    records: dict[Path, dict[str, Any]] = {}
    objects: dict[Path, list[Instance]] = {}
    with tqdm(total=len(sizes), desc="predict", unit="image", disable=not progress, leave=False) as bar:
        for start in range(0, len(sizes), batch_size):
            chosen = list(sizes)[start : start + batch_size]
            images, unread = _readable(chosen, lambda path: load_image(path, channels))
            failed |= unread
            results = predictor.predict(
                list(images.values()),
                prompt,
                domain,
                instances,
                batch_size=batch_size,
                points_per_side=points_per_side,
                min_score=min_score,
            )
            for (path, image), result in zip(images.items(), results):
                written = _write(folder, names[path], displayable(image), result, predictor.classes)
                records[path] = {"file": str(path), **written, **_describe(prompt)}
                if result.instances is not None:
                    objects[path] = result.instances
            bar.update(len(chosen))
    if not records:
        raise next(iter(failed.values()))
    if instances is not None:
        measured = [(record["height"], record["width"]) for record in records.values()]
        files = [path.name for path in records]
        # Images of one name in several folders are told apart by their paths.
        files = files if len(set(files)) == len(files) else list(map(str, records))
        write_json(folder / "instances.json", coco_content(files, list(objects.values()), measured))
    listed = [records[path] if path in records else {"file": str(path), "error": str(failed[path])} for path in paths]
    write_json(folder / "predictions.json", {"adapter": adapter, "model": model, "predictions": listed})
    return listed


def find_images(inputs: Sequence[str], arrays: bool = False) -> list[Path]:
    """The image files that `inputs` name, in their order, each once; of folders also the `.npy` arrays if `arrays`.

    Raises:
        UserError: nothing is named, or an input is missing, matches nothing, or is a folder without images.
    """
    if not inputs:
        raise UserError("none given", key="inputs", fix="name image files, folders or glob patterns")
    suffixes = IMAGE_SUFFIXES | {ARRAY_SUFFIX} if arrays else IMAGE_SUFFIXES
    found: dict[Path, Path] = {}
    for text in map(str, inputs):
        path = Path(text)
        if path.is_dir():
            matches = files_below(path, suffixes, deep=False)
            problem = "is a folder without images"
            if not matches and (below := files_below(path, suffixes)):
                problem += f" of its own; its sub-folders hold {len(below)}, such as {below[0]}"
        elif path.exists():
            matches, problem = [path] * (not is_leftover(path.name)), "is not an image but was left there by a tool"
        else:
            named = set(Path(text).parts)  # a hidden folder that is spelt out is meant
            globbed = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            matches = [
                match
                for match in globbed
                if match.is_file() and not any(is_leftover(part) for part in match.parts if part not in named)
            ]
            problem = "matches no file" if glob.has_magic(text) else "does not exist"
        if not matches:
            raise UserError(
                f"{text} {problem}", key="inputs", fix="name image files, folders of images or glob patterns"
            )
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file, its stem where that is unique (also on file systems that ignore case or Unicode forms)."""
    stems = Counter(_plain(path.stem) for path in paths)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        unique = stems[_plain(path.stem)] == 1
        wanted = path.stem if unique else f"{path.resolve().parent.name}_{path.stem}"
        name, number = wanted, 2
        while _plain(name) in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(_plain(name))
        names.append(name)
    return names


def _plain(name: str) -> str:
    """What a file system may take names to be equal by."""
    return one_form(name).casefold()


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


def _check_outputs(folder: Path, paths: Sequence[Path], names: Sequence[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", key="output_dir", fix="name a folder")
    inputs = {path.resolve() for path in paths}
    for name in names:
        for output in (folder / f"{name}_{kind}.png" for kind in ("mask", "overlay", "instances")):
            if output.resolve() in inputs:
                raise UserError(
                    f"{output} is an input and would be overwritten", key="output_dir", fix="name another folder"
                )


def _write(
    folder: Path, name: str, image: np.ndarray, result: Prediction, classes: list[str] | None
) -> dict[str, Any]:
    """Writes mask, overlay and picture of the instances; returns what is to be said of them.

    Label maps are 8-bit palette PNGs whose values are the classes.
    """
    files = {"mask": f"{name}_mask.png", "overlay": f"{name}_overlay.png"}
    about: dict[str, Any] = {**files, "height": result.mask.shape[0], "width": result.mask.shape[1]}
    if classes is None:
        picture = Image.fromarray(result.mask.astype(np.uint8) * 255)
        tinted, logits = overlay(image, result.mask, MASK_COLOURS["adapted"]), result.logits
        about["foreground"] = float(result.mask.mean())
        about["logits"] = {"min": float(logits.min()), "mean": float(logits.mean()), "max": float(logits.max())}
        about["iou_estimate"] = result.score
    else:
        picture = Image.fromarray(result.mask)
        picture.putpalette(class_colours(len(classes)).tobytes())
        tinted = class_overlay(image, result.mask, len(classes))
        tinted = with_legend(tinted, class_legend(result.mask, classes))
        about["classes"] = result.classes
    picture.save(folder / files["mask"])
    Image.fromarray(tinted).save(folder / files["overlay"])
    if result.instances is not None:
        Image.fromarray(draw_instances(image, result.instances)).save(folder / f"{name}_instances.png")
        about["instances"] = len(result.instances)
    return about if result.domain is None else about | {"domain": result.domain}


def _describe(prompt: Prompt) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": prompt.kind}
    if prompt.kind == "box":
        described["box"] = np.asarray(prompt.boxes)[0].tolist()
    elif prompt.kind == "point":
        described["point"] = np.asarray(prompt.points)[0, 0].tolist()
    return {"prompt": described}
