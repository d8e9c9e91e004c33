"""One export, from the adapter's name to a folder that was tried out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ... import __version__
from ...errors import UserError, require_extra
from ...files import check_free, follow_umask, whole_folder, write_text
from ...inference.forward import pool_of
from ...inference.loading import Loaded, load_named, method_of
from ...sam.attention import use_fast_attention
from ...sam.families import SAM, family_of
from ...sam.mask_choice import stop_choosing
from ...training.earlier_run import EarlierRun
from ..checkpoints.checkpoint import read_checkpoint
from ..checkpoints.segment_anything import meta_state, registry_name, sam_of_checkpoint
from .check import (
    Comparison,
    Exported,
    ExportedModel,
    ExportedParts,
    TestImages,
    check_dataset_named,
    compare,
    kinds_of,
)
from .onnx_files import check_opset, onnx_runner, write_onnx
from .parts import check_encoder_input, merged, parts_of
from .programs import program_runner, write_program


OPSET = 18
FORMATS = ("onnx", "torch", "sam-pth", "transformers")
# The largest difference of a logit as a share of the image's largest, above which nothing is written.
BOUNDS = {"no": 1e-4, "fp16": 2e-2, "int8": 0.2}
CONFIG = "config.json"


@dataclass(frozen=True)
class Export:
    """What an export left.

    Attributes:
        folder: what was written.
        files: bytes by name.
        tested: what it was compared on, in words.
        comparisons: one a kind of prompt.
        bound: largest difference that was allowed.
        same_domain: of a pool, the share of images that both routers send to one domain.
        notes: sentences on what its user has to know.
    """

    folder: Path
    files: dict[str, int]
    tested: str
    comparisons: list[Comparison]
    bound: float
    same_domain: float | None
    notes: list[str]


def export(
    run: str,
    output_dir: str | Path,
    *,
    format: str = "onnx",
    model: str | None = None,
    precision: str = "no",
    opset: int = OPSET,
    encoder_input: str = "pixels",
    aot: bool = False,
    dataset: str | None = None,
    limit: int = 16,
    max_difference: float | None = None,
    progress: bool = True,
) -> Export:
    """Write a model for other programs, and run what was written beside PyTorch on test images.

    Args:
        run: run folder, adapter, pool or model folder, Hub id, or `tiny`.
        output_dir: must not exist, or be empty; appears whole or not at all.
        format: "onnx" and "torch" (`torch.export`) write graphs of every method; "sam-pth" (segment-anything's names)
            and "transformers" merged weights.
        model: base model in place of the one that the adapter names.
        precision: of ONNX files, "no" (fp32), "fp16", or "int8" (dynamic quantisation).
        opset: of ONNX.
        encoder_input: "pixels", the processor's output (B, C, S, S); or "image", an RGB image (H, W, 3) of 0..255 that
            is S pixels long, which the graph normalises and pads, as AnyLabeling hands it over.
        aot: compile the programs of "torch", but the decoder's, for this machine's processor by AOTInductor.
        dataset: whose test images are segmented; None: the run's, or drawn noise where there is none.
        limit: test images at most; 0: all.
        max_difference: see `BOUNDS`, in place of that.
        progress: show a bar.

    Raises:
        UserError: what cannot be exported in this format, a package that is missing, an `output_dir` that holds
            something, or a difference above the bound; nothing is left then.
    """
    folder, bound = Path(output_dir), BOUNDS.get(precision, 0.0) if max_difference is None else max_difference
    _check_options(format, precision, opset, encoder_input, aot, limit, bound)
    check_free(folder, "output_dir")
    loaded = load_named(run, model)
    earlier = None if loaded.plain else EarlierRun.read(run)
    check_dataset_named(dataset, earlier)
    kinds = kinds_of(loaded, earlier)
    tested = TestImages.of(earlier, dataset, loaded, limit)
    with whole_folder(folder) as part:
        exported: Exported
        if format in ("onnx", "torch"):
            graphs = _Graphs(loaded, kinds, format, precision, opset, encoder_input, aot, progress)
            exported, notes, kinds = graphs.write(part)
        else:
            exported, notes = _write_weights(loaded, format, part)
        comparisons, same_domain = compare(loaded, exported, tested, _compared(kinds))
        graphs_fix = "take a finer precision, or allow more"
        weights_fix = "graphs hold what this package computes: use --format onnx or torch"
        _check_bound(comparisons, bound, graphs_fix if format in ("onnx", "torch") else weights_fix)
        if format in ("onnx", "torch"):
            graphs.write_config(part, run, comparisons, same_domain)
        follow_umask(part)
        files = {
            str(file.relative_to(part)): file.stat().st_size for file in sorted(part.rglob("*")) if file.is_file()
        }
    said = f"{len(tested.images)} of {tested.total} {tested.name}" if tested.has_masks else tested.name
    return Export(folder, files, said, comparisons, bound, same_domain, notes)


def _compared(kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if kind in ("none", "box", "point")] or ["box"]


def _check_options(
    format: str, precision: str, opset: int, encoder_input: str, aot: bool, limit: int, bound: float
) -> None:
    """Raise `UserError` for options that do not go together, or need what is not installed."""
    for key, value, known in (
        ("format", format, FORMATS),
        ("precision", precision, tuple(BOUNDS)),
        ("encoder_input", encoder_input, ("pixels", "image")),
    ):
        if value not in known:
            raise UserError(f"{value!r} is unknown", key=key, fix=f"use one of {', '.join(known)}")
    for key, given, fitting, takers in (
        ("precision", precision != "no", ("onnx",), "onnx"),
        ("opset", opset != OPSET, ("onnx",), "onnx"),
        ("encoder_input", encoder_input != "pixels", ("onnx", "torch"), "onnx or torch"),
        ("aot", aot, ("torch",), "torch"),
    ):
        if given and format not in fitting:
            raise UserError(f"only --format {takers} takes it, not {format}", key=key, fix="leave it out")
    if limit < 0:
        raise UserError(f"{limit} is below 0", key="limit")
    if not bound > 0:
        raise UserError(f"{bound} is not above 0", key="max_difference")
    if format == "onnx":
        require_extra("export", "export --format onnx")
        check_opset(opset)


def _check_bound(comparisons: Sequence[Comparison], bound: float, fix: str) -> None:
    """Raise `UserError` for a difference above the bound."""
    for one in comparisons:
        if not one.difference <= bound:  # of NaN, too
            raise UserError(
                f"with prompt {one.kind} a logit differs from PyTorch's by {one.difference:.2g} of the image's "
                f"largest, allowed are {bound:.2g}",
                key="max_difference",
                fix=f"nothing was left; {fix}",
            )


def _plain(loaded: Loaded, format: str) -> nn.Module:
    """The merged model; `UserError` where there is none, naming the formats that take what the adapter does."""
    try:
        return merged(loaded.model)
    except NotImplementedError as error:
        raise UserError(
            f"{method_of(loaded.config)} cannot be written as {format}: {error}",
            key="format",
            fix="use --format onnx or torch",
        ) from error


def _write_weights(loaded: Loaded, format: str, folder: Path) -> tuple[ExportedModel, list[str]]:
    """Write merged weights, and load them again."""
    family = family_of(loaded.model)
    if format == "sam-pth" and family is not SAM:
        raise UserError(
            f"{family.title} models cannot be written as sam-pth, only {SAM.title} ones",
            key="format",
            fix="use --format onnx or torch, or transformers where the adapter merges",
        )
    sam: Any = _plain(loaded, format)
    stop_choosing(sam)  # the masks are those of token 0, as in graphs
    loaded.processor.save_pretrained(folder)
    if format == "transformers":
        sam.save_pretrained(folder)
        again = family.model_class.from_pretrained(folder, dtype=torch.float32)
        note = "What was adapted is the mask that the model returns with multimask_output=False, not its three others."
        return ExportedModel(again.eval(), loaded.processor), [note]
    name = registry_name(sam)
    file = folder / f"sam_{name or 'model'}.pth"
    torch.save({key: value.contiguous() for key, value in meta_state(sam).items()}, file)
    again = sam_of_checkpoint(read_checkpoint(file), sam.config)
    build = f'sam_model_registry["{name}"](checkpoint="{file.name}")'
    note = f"It loads by {build}." if name else "No entry of sam_model_registry has its sizes: build a Sam of them."
    return ExportedModel(again, loaded.processor), [note]


class _Graphs:
    """The files of a graph format."""

    def __init__(
        self,
        loaded: Loaded,
        kinds: list[str],
        format: str,
        precision: str,
        opset: int,
        encoder_input: str,
        aot: bool,
        progress: bool,
    ) -> None:
        self.progress = progress
        self.loaded, self.kinds, self.format, self.precision = loaded, kinds, format, precision
        self.opset, self.encoder_input, self.aot = opset, encoder_input, aot
        self.written: dict[str, Path] = {}

    def write(self, folder: Path) -> tuple[ExportedParts, list[str], list[str]]:
        """Write all parts; what runs them, notes, and the kinds of prompts that they take."""
        loaded, classes = self.loaded, self.loaded.classes is not None
        check_encoder_input(loaded.processor, self.encoder_input)
        try:
            model = merged(loaded.model)
        except NotImplementedError:  # then the adapter is in the graph
            model = loaded.model
        use_fast_attention(model)
        opened = {}
        promptless = "none" in self.kinds
        parts = parts_of(
            model, loaded.processor, classes=classes, promptless=promptless, encoder_input=self.encoder_input
        )
        for part in tqdm(parts, desc="export", unit="file", disable=not self.progress, leave=False):
            if self.format == "onnx":
                path = write_onnx(part, folder, self.opset, self.precision)
                opened[part.name] = part, partial(onnx_runner, part, path)
            else:
                path = write_program(part, folder, self.aot)
                opened[part.name] = part, partial(program_runner, part, path, self.aot)
            self.written[part.name] = path.relative_to(folder)
        kinds = ["none"] if classes else [*self.kinds, *([] if {"box", "point"} & {*self.kinds} else ["box"])]
        notes = ["The adapter is part of the graphs."] if model is loaded.model and loaded.config is not None else []
        runs = ExportedParts(opened, loaded.processor, classes, self.encoder_input, self._domains())
        return runs, notes, kinds

    def write_config(
        self, folder: Path, run: str, comparisons: Sequence[Comparison], same_domain: float | None
    ) -> None:
        """Write `config.json`: what a program has to know that runs the files."""
        loaded, processor = self.loaded, self.loaded.processor
        config: dict[str, Any] = {
            "hf_sam_adapt": __version__,
            "source": run,
            "method": None if loaded.plain else method_of(loaded.config),
            "format": self.format,
            **({"opset": self.opset, "precision": self.precision} if self.format == "onnx" else {}),
            "files": {name: path.as_posix() for name, path in self.written.items()},
            "domains": self._domains(),
            "labels": loaded.classes,
            "prompts": self.kinds,
            "estimates_iou": loaded.has_estimate,
            "encoder_input": self.encoder_input,
            "image_size": processor.image_size,
            "mask_size": processor.mask_size,
            "resize": processor.resize,
            "resample": processor.resample,
            "antialias": processor.antialias,
            "channels": processor.channels or 3,
            "image_mean": None if processor.normalization else processor.image_mean,
            "image_std": None if processor.normalization else processor.image_std,
            "normalization": processor.normalization,
            "slices": processor.slices,
            "tiling": processor.tiling,
            "compared_with_pytorch": [dataclasses.asdict(one) for one in comparisons],
            "same_domain": same_domain,
        }
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")

    def _domains(self) -> list[str] | None:
        pool = pool_of(self.loaded.model)
        return None if pool is None else list(pool.domains)
