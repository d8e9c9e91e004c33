"""`hf-sam-adapt predict`: masks of image files, at the size of the images."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers.image_processing_utils import BatchFeature

from ..data.channels import ARRAY_SUFFIX, displayable, load_header, load_image
from ..data.folder import IMAGE_SUFFIXES
from ..data.walk import files_below, is_leftover, one_form
from ..errors import UserError
from ..inference.forward import encode, pool_of, segment_scored
from ..inference.instances import Instance, InstanceSource, coco_content, find_instances
from ..inference.loading import load_adapted, load_base
from ..inference.variants import Unlabelled, device_of, inference, label_maps, merge_objects, routed
from ..prompts import Prompt
from ..reporting.class_maps import class_colours, class_legend, class_names, class_overlay, with_legend
from ..reporting.prompts import draw_instances
from ..reporting.report import MASK_COLOURS, overlay, write_json
from ..sam.attention import Kind
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .arguments import PredictArguments


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
    if batch_size < 1:
        raise UserError(f"{batch_size} is below 1", key="batch_size")
    prompt = _prompt(box, point)
    if instances is not None and prompt.kind != "none":
        raise UserError(
            "instances are found without a prompt", key=f"instances, {prompt.kind}", fix="give one of them"
        )
    if points_per_side < 1:
        raise UserError(f"{points_per_side} is below 1", key="points_per_side")
    find_images(inputs, arrays=True)  # what is missing is said before a model is loaded
    # The processor says how images are read.
    network, processor, has_estimate, id2label = _load(adapter, model, attention)
    routed(network, domain)  # a wrong one is said before anything is written
    if id2label is not None and prompt.kind != "none":
        raise UserError(
            f"{adapter} segments {len(id2label)} classes, which takes no prompt", key=prompt.kind, fix="leave it out"
        )
    if id2label is not None and instances is not None:
        raise UserError(
            f"{adapter} segments {len(id2label)} classes, not objects", key="instances", fix="leave instances out"
        )
    paths = find_images(inputs, arrays=processor.channels is not None)
    sizes, failed = _sizes(paths, processor.channels)
    _check_inside(prompt, sizes)
    folder = Path(output_dir)
    names = dict(zip(paths, output_names(paths)))
    _check_outputs(folder, paths, list(names.values()))
    network.to(PartialState().device)

    folder.mkdir(parents=True, exist_ok=True)
    records: dict[Path, dict[str, Any]] = {}
    objects: dict[Path, list[Instance]] = {}
    with tqdm(total=len(sizes), desc="predict", unit="image", disable=not progress, leave=False) as bar:
        for start in range(0, len(sizes), batch_size):
            chosen = list(sizes)[start : start + batch_size]
            images, unread = _read(chosen, processor.channels)
            failed |= unread
            bar.update(len(chosen))
            if not images:
                continue
            with inference([network], precision):
                if id2label is not None:
                    records |= _predict_classes(network, processor, images, names, folder, id2label)
                    continue
                with routed(network, domain):
                    batch = processor(list(images.values()), prompts=[prompt] * len(images))
                    embeddings = encode(network, batch["pixel_values"].to(device_of(network)))
                    results = _segment(network, processor, batch, embeddings)
                    if instances is not None:
                        per_image = find_instances(
                            network,
                            processor,
                            batch,
                            embeddings,
                            instances,
                            has_estimate=has_estimate,
                            points_per_side=points_per_side,
                        )
                        kept = ([one for one in found if one.score >= min_score] for found in per_image)
                        objects |= dict(zip(images, kept))
            for (path, image), (logits, estimate, own_domain) in zip(images.items(), results):
                record = {"file": str(path), **_write(folder, names[path], image, logits), **_describe(prompt)}
                record["iou_estimate"] = estimate if has_estimate else None
                if instances is not None:
                    picture = draw_instances(displayable(image), objects[path])
                    Image.fromarray(picture).save(folder / f"{names[path]}_instances.png")
                    record["instances"] = len(objects[path])
                records[path] = record if own_domain is None else record | {"domain": own_domain}
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
        if len(box) != 4 or box[0] > box[2] or box[1] > box[3]:
            raise UserError(
                f"{' '.join(map(str, box))} is not a box", key="box", fix="give x0 y0 x1 y1 with x0 <= x1 and y0 <= y1"
            )
        return Prompt("box", boxes=np.array([box], np.float32))
    if point is not None:
        if len(point) != 2:
            raise UserError(f"{' '.join(map(str, point))} is not a point", key="point", fix="give x y")
        return Prompt("point", points=np.array([[point]], np.float32), point_labels=np.ones((1, 1), np.int64))
    return Prompt("none")


def _sizes(paths: Sequence[Path], channels: int | None) -> tuple[dict[Path, tuple[int, int]], dict[Path, UserError]]:
    """(height, width) of the images that can be read, and what is wrong with the others; `UserError` if all are."""
    sizes, failed = {}, {}
    for path in paths:
        try:
            header = load_header(str(path), channels)
            sizes[path] = header.height, header.width
        except UserError as error:
            failed[path] = error
    if not sizes:
        first = next(iter(failed.values()))
        count = f" (and so {len(failed) - 1} further images)" if len(failed) > 1 else ""
        raise first.replace(problem=f"{first.problem}{count}")
    return sizes, failed


def _read(paths: Sequence[Path], channels: int | None) -> tuple[dict[Path, np.ndarray], dict[Path, UserError]]:
    """The images that can be read, and what is wrong with the others."""
    images, failed = {}, {}
    for path in paths:
        try:
            images[path] = load_image(path, channels)
        except UserError as error:
            failed[path] = error
    return images, failed


def _check_inside(prompt: Prompt, sizes: Mapping[Path, tuple[int, int]]) -> None:
    if prompt.kind == "none":
        return
    # box (1, 4) or point (1, 1, 2) -> (x, y) pairs
    corners = np.asarray(prompt.boxes if prompt.kind == "box" else prompt.points).reshape(-1, 2)
    for path, (height, width) in sizes.items():
        if not (np.isfinite(corners).all() and (corners >= 0).all() and (corners < [width, height]).all()):
            raise UserError(f"it reaches outside {path}, which has {width}x{height} pixels", key=prompt.kind)


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


def _load(
    adapter: str | None, model: str | None, attention: Kind
) -> tuple[nn.Module, SamAdaptProcessor, bool, dict[int, str] | None]:
    """Model, processor, whether its IoU estimate means anything, and the names of its classes, None for one class."""
    if adapter is None:
        if model is None:
            raise UserError("not given", key="adapter", fix="name a run folder or Hub id, or a plain SAM with --model")
        return *load_base(model, attention), True, None
    loaded = load_adapted(adapter, model, attention=attention)
    has_estimate = bool(getattr(loaded.config, "train_iou_head", False))
    num_labels = getattr(loaded.config, "num_labels", None)
    if num_labels is None:
        return loaded.model, loaded.processor, has_estimate, None
    names = class_names(num_labels, getattr(loaded.config, "id2label", None))
    return loaded.model, loaded.processor, has_estimate, dict(enumerate(names))


def _predict_classes(
    network: nn.Module,
    processor: SamAdaptProcessor,
    images: Mapping[Path, np.ndarray],
    names: Mapping[Path, str],
    folder: Path,
    id2label: dict[int, str],
) -> dict[Path, dict[str, Any]]:
    """Writes label maps (8-bit palette PNGs whose values are the classes) and overlays; what is to be said of them."""
    colours = class_colours(len(id2label))
    samples = [Unlabelled(image) for image in images.values()]
    records = {}
    for (path, image), labels in zip(images.items(), label_maps(network, processor, samples)):
        files = {"mask": f"{names[path]}_mask.png", "overlay": f"{names[path]}_overlay.png"}
        picture = Image.fromarray(labels)
        picture.putpalette(colours.tobytes())
        picture.save(folder / files["mask"])
        tinted = class_overlay(displayable(image), labels, len(id2label))
        legend = class_legend(labels, [*id2label.values()])
        Image.fromarray(with_legend(tinted, legend)).save(folder / files["overlay"])
        shares = np.bincount(labels.ravel(), minlength=len(id2label)) / labels.size
        classes = {id2label[label]: float(share) for label, share in enumerate(shares)}
        size = {"height": labels.shape[0], "width": labels.shape[1]}
        records[path] = {"file": str(path), **files, **size, "classes": classes, "prompt": {"kind": "none"}}
    return records


def _segment(
    network: nn.Module, processor: SamAdaptProcessor, inputs: BatchFeature, embeddings: ImageEmbeddings
) -> list[tuple[torch.Tensor, float, str | None]]:
    """Per image the logits (H, W), the IoU estimate, and of a pool the domain."""
    scored = segment_scored(network, None, inputs["prompts"], image_embeddings=embeddings)
    logits = merge_objects(processor, inputs, [masks for masks, _ in scored])
    pool = pool_of(network)
    domains: list[str | None] = [None] * len(embeddings)
    if pool is not None and embeddings.domains is not None:
        domains = [*pool.names_of(embeddings.domains)]
    estimates = [float(estimate.max()) for _, estimate in scored]
    return list(zip(logits, estimates, domains))


def _write(folder: Path, name: str, image: np.ndarray, logits: torch.Tensor) -> dict[str, Any]:
    """Writes mask and overlay; returns what is to be said of them."""
    mask = (logits > 0).cpu().numpy()
    files = {"mask": f"{name}_mask.png", "overlay": f"{name}_overlay.png"}
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / files["mask"])
    Image.fromarray(overlay(displayable(image), mask, MASK_COLOURS["adapted"])).save(folder / files["overlay"])
    return {
        **files,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "foreground": float(mask.mean()),
        "logits": {"min": logits.min().item(), "mean": logits.mean().item(), "max": logits.max().item()},
    }


def _describe(prompt: Prompt) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": prompt.kind}
    if prompt.kind == "box":
        described["box"] = np.asarray(prompt.boxes)[0].tolist()
    elif prompt.kind == "point":
        described["point"] = np.asarray(prompt.points)[0, 0].tolist()
    return {"prompt": described}
