"""Prediction of volumes: every slice is segmented, and the masks are written as a volume on the source's grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.channels import displayable
from ...data.images import Header
from ...data.volumes.slices import KEYS, SliceKeys
from ...data.volumes.stack import Grid, is_volume, open_grid, open_stack, write_volume
from ...errors import UserError
from ...inference.prediction import Prediction
from ...inference.uncertainty import uncertainty
from ...sam.processing import SamAdaptProcessor
from .maps import MapWriter
from .result import ImageResult, Writer, described


class NiftiWriter(Writer):
    """`<name>_mask.nii.gz`, uint8, 1 = foreground, or the classes, on the grid of its source, in its order of voxels.

    With probabilities also `<name>_probability.nii.gz`, float32, of classes `<name>_probability_<label>.nii.gz`.
    """

    key = "nifti"

    def files(self, name: str) -> list[str]:
        files = [f"{name}_mask.nii.gz"]
        if self.options.probability:
            count = None if self.options.classes is None else len(self.options.classes)
            labels = [""] if count is None else [f"_{label}" for label in range(count)]
            files += [f"{name}_probability{label}.nii.gz" for label in labels]
        return files

    def write_volume(self, name: str, grid: Grid, labels: np.ndarray, chances: np.ndarray | None) -> dict[str, Any]:
        """Labels uint8 (n, H, W), and probabilities float32 (n, 1 or K, H, W) where they are asked for."""
        mask_file, *others = self.files(name)
        write_volume(self.folder / mask_file, grid, labels)
        about: dict[str, Any] = {self.key: mask_file}
        if chances is not None:
            for place, file in enumerate(others):
                write_volume(self.folder / file, grid, chances[:, place])
            about["nifti_probability"] = others if len(others) > 1 else others[0]
        return about


def volumes_among(paths: Sequence[Path]) -> bool:
    """Whether the inputs are volumes. Raises `UserError` where some are and some are images."""
    volumes = [path for path in paths if is_volume(path)]
    if volumes and len(volumes) < len(paths):
        image = next(path for path in paths if path not in volumes)
        raise UserError(
            f"volumes such as {volumes[0].name} and images such as {image.name}", key="inputs", fix="give one kind"
        )
    return bool(volumes)


def slice_keys(processor: SamAdaptProcessor, volumes: bool, writers: Sequence[Writer], *given: Any) -> SliceKeys:
    """How volumes are cut: as the keys `slice_axis`, `window` and `neighbours` say, else as in the training.

    Raises:
        UserError: such a key, or NIfTI, for images; a format of maps for volumes; a value outside its range.
    """
    chosen = {key: value for key, value in zip(KEYS, given) if value is not None}
    formats = [writer for writer in writers if isinstance(writer, MapWriter if volumes else NiftiWriter)]
    if formats:
        kind = "maps" if volumes else "volumes"
        raise UserError(f"{formats[0].key} is for {kind}", key="format", fix="choose another")
    if chosen and not volumes:
        raise UserError("it is for volumes, and the inputs are images", key=min(chosen), fix="leave it out")
    return SliceKeys.of((processor.slices or {}) | chosen, processor.channels if volumes else None)


def slice_header(path: Path, keys: SliceKeys) -> Header:
    """Size of the slices of a volume."""
    _, height, width = open_grid(path, keys.slice_axis).shape
    return Header(height, width, lossy=False)


def volume_targets(path: Path, name: str, keys: SliceKeys, writers: Sequence[Writer]) -> list[str]:
    """The files that `predict_volume` writes."""
    files = [file for writer in writers if isinstance(writer, NiftiWriter) for file in writer.files(name)]
    single = [writer for writer in writers if not isinstance(writer, NiftiWriter)]
    slices = range(open_grid(path, keys.slice_axis).shape[0] if single else 0)
    return files + [file for k in slices for writer in single for file in writer.targets(None, slice_name(name, k))]


def slice_name(name: str, number: int) -> str:
    """What the results of a slice are called."""
    return f"{name}_{number:04d}"


def predict_volume(
    path: Path,
    name: str,
    keys: SliceKeys,
    predict: Callable[[list[np.ndarray]], list[Prediction]],
    writers: Sequence[Writer],
    unsure: float | None,
    batch_size: int,
) -> dict[str, Any]:
    """Segment a volume slice by slice, and write it.

    Args:
        predict: images -> what is in them.
        writers: NIfTI is written of the volume, other formats of each slice, called `<name>_<number>`.
        unsure: threshold of the masks, where the uncertainty of the slices is wanted.
        batch_size: slices that are read at once.

    Returns:
        `shape` (slices, rows, columns) and `spacing_mm` of the stack, what the NIfTI writer says, `foreground` and
        `volume_ml` of it, or of classes both by name; of a pool `domains`, the slices of each; and with other formats
        or `unsure` `slices`, a record for each.
    """
    stack = open_stack(path, keys.slice_axis)
    grid, labels, chances, parts = stack.grid, np.zeros(stack.grid.shape, np.uint8), None, []
    whole = [writer for writer in writers if isinstance(writer, NiftiWriter)]
    single = [writer for writer in writers if not isinstance(writer, NiftiWriter)]
    domains: Counter[str] = Counter()
    classes = None
    for number in range(len(labels)) if single else ():
        keys.image(stack, number)  # raises before the files of any slice are written
    for start in range(0, len(labels), batch_size):
        numbers = range(start, min(start + batch_size, len(labels)))
        images = [keys.image(stack, number) for number in numbers]
        for number, image, prediction in zip(numbers, images, predict(images), strict=True):
            labels[number], classes = prediction.mask, prediction.classes
            domains.update([] if prediction.domain is None else [prediction.domain])
            if any(writer.options.probability for writer in whole):
                maps = prediction.probabilities.reshape(-1, *prediction.mask.shape)  # (1 or K, H, W)
                chances = np.zeros((len(labels), *maps.shape), np.float32) if chances is None else chances
                chances[number] = maps
            if single or unsure is not None:
                result = ImageResult(path, slice_name(name, number), displayable(image), prediction, is_slice=True)
                record: dict[str, Any] = {"file": str(path), "slice": number, **described(prediction)}
                if unsure is not None:
                    record["uncertainty"] = uncertainty(prediction, unsure)
                for writer in single:
                    record |= writer.write(result)
                parts.append(record)
    about: dict[str, Any] = {"shape": list(grid.shape), "spacing_mm": list(grid.spacing)}
    for writer in whole:
        about |= writer.write_volume(name, grid, labels, chances)
    about |= _amounts(labels, grid, None if classes is None else list(classes))
    if domains:
        about |= {"domain": domains.most_common(1)[0][0], "domains": dict(domains)}
    if parts:
        about["slices"] = parts
        if unsure is not None:  # a volume is as unsure as its slices are on the whole
            about["uncertainty"] = {
                key: float(np.mean([part["uncertainty"][key] for part in parts])) for key in parts[0]["uncertainty"]
            }
    return about


def _amounts(labels: np.ndarray, grid: Grid, classes: list[str] | None) -> dict[str, Any]:
    """Shares and millilitres of a predicted volume."""
    counts = np.bincount(labels.ravel(), minlength=2 if classes is None else len(classes))
    shares, millilitres = counts / labels.size, counts * abs(np.linalg.det(grid.affine[:3, :3])) / 1000
    if classes is None:
        return {"foreground": float(shares[1]), "volume_ml": float(millilitres[1])}
    return {"classes": dict(zip(classes, shares.tolist())), "volume_ml": dict(zip(classes, millilitres.tolist()))}
