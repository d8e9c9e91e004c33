"""A volume as a stack of slices that are looked at from one side, whatever order its file stores them in."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError, first_line, require_extra
from ...files import whole_file
from . import dicom


NIFTI_SUFFIXES = (".nii", ".nii.gz")
# Directions of (slice, row, column): slices are shown as radiologists see them, the patient's right on the left.
AXES = {"axial": ("S", "P", "L"), "coronal": ("P", "I", "L"), "sagittal": ("L", "I", "P")}
ALIKE = 1.01  # spacings whose ratio is smaller are equal
PERCENTILES = (1.0, 99.0)
SAMPLED = 2**20  # voxels that percentiles are taken of
KEPT_BYTES = 2 * 2**30  # of unpacked volumes that a process keeps
AFFINE_TOLERANCE = 1e-2  # of a voxel, by which the corners of two grids may differ


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        path: of the file or series.
        shape: (n, H, W) of the stack.
        affine: float64 (4, 4), from (slice, row, column) to millimetres (RAS).
        stored_shape, stored_affine: the same of the array that the file stores, or for a series (column, row, slice).
        turn, turn_back: nibabel's orientation transforms from that array to the stack and back.
        stored: what the file's reader knows: an image of nibabel, or the headers of a series.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    stored_shape: tuple[int, int, int]
    stored_affine: np.ndarray
    turn: np.ndarray
    turn_back: np.ndarray
    stored: Any

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between (slices, rows, columns)."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())  # type: ignore[return-value]

    @property
    def unpacked_bytes(self) -> int:
        """Memory that the volume takes, 0 of a file that is read in place."""
        if self.path.suffix == ".nii":
            return 0
        itemsize = 2 if isinstance(self.stored, list) else self.stored.get_data_dtype().itemsize
        return int(np.prod(self.shape)) * itemsize

    def differs(self, other: Grid) -> str | None:
        """How another grid differs, in words; None where each voxel lies in the same place."""
        if self.shape != other.shape:
            sizes = ("x".join(map(str, grid.shape)) for grid in (other, self))
            return "{} voxels, its image has {}".format(*sizes)
        corners = np.array(np.meshgrid(*([0, side - 1] for side in self.shape), [1], indexing="ij")).reshape(4, -1)
        moved = np.abs((self.affine - other.affine) @ corners).max()
        if moved > AFFINE_TOLERANCE * min(self.spacing):
            return f"another affine than its image, voxels lie up to {moved:.3g} mm apart"
        return None


@dataclass(frozen=True)
class Stack:
    """The values of a volume.

    Attributes:
        grid: where they lie.
        values: as stored, (n, H, W); of an uncompressed file on disk.
        slope, intercept: value = slope * stored + intercept.
    """

    grid: Grid
    values: np.ndarray
    slope: float
    intercept: float

    def read(self, number: int) -> np.ndarray:
        """A slice in the units of the volume, float32 (H, W). Raises `UserError` for NaN or infinity."""
        values = np.ascontiguousarray(self.values[number], np.float32) * np.float32(self.slope)
        values += np.float32(self.intercept)
        if not np.isfinite(values).all():
            wrong = int((~np.isfinite(values)).sum())
            raise UserError(
                f"slice {number}: {wrong} of {values.size} voxels are NaN or infinite",
                where=self.grid.path,
                fix="give them a finite value, such as the smallest",
                code="not-finite",
            )
        return values

    @cached_property
    def usual_range(self) -> tuple[float, float]:
        """The 1st and the 99th percentile of all voxels, of a regular sample of a million."""
        step = max(1, int(np.ceil((self.values.size / SAMPLED) ** (1 / 3))))
        sample = np.asarray(self.values[::step, ::step, ::step], np.float64) * self.slope + self.intercept
        low, high = np.percentile(sample[np.isfinite(sample)], PERCENTILES) if np.isfinite(sample).any() else (0, 1)
        return float(low), float(high) if high > low else float(low) + 1


_KEPT: OrderedDict[tuple[str, str | None, int], Stack] = OrderedDict()
_LOCK = threading.Lock()


def is_volume(path: Path) -> bool:
    """Whether `path` is a NIfTI file, or a folder that itself holds DICOM files."""
    return volume_suffix(path.name) is not None or dicom.is_series(path)


def volume_suffix(name: str) -> str | None:
    """`.nii.gz` or `.nii` of such a file's name, None of others."""
    return next((suffix for suffix in reversed(NIFTI_SUFFIXES) if name.lower().endswith(suffix)), None)


def volume_stem(path: Path) -> str:
    """The name of a volume, or of another file, without its suffix."""
    suffix = volume_suffix(path.name)
    return path.name.removesuffix(path.name[-len(suffix) :]) if suffix else path.stem


def open_grid(path: str | Path, axis: str | None = None) -> Grid:
    """Where the voxels of a volume lie, by its header alone.

    Args:
        path: a NIfTI file or the folder of a DICOM series.
        axis: a key of `AXES`, across which it is cut; None = that of the largest voxels, axial where they are cubes.

    Raises:
        UserError: missing, damaged, not of three dimensions, or a series with missing slices; the message names it.
    """
    require_extra("volumes", "reading volumes")
    path = Path(path)
    if path.is_dir():
        stored, affine = dicom.read_series(path)
        shape = (int(stored[0].Columns), int(stored[0].Rows), len(stored))
    else:
        stored = _load_nifti(path)
        shape, affine = _three(stored.shape, path), np.asarray(stored.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError("an affine that is no place in space", where=path, fix="correct its header")
    return _turned(path, shape, affine, stored, axis)


def _turned(path: Path, shape: tuple[int, int, int], affine: np.ndarray, stored: Any, axis: str | None) -> Grid:
    from nibabel import orientations

    own = orientations.io_orientation(affine)
    if axis is None:
        sizes = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(own[:, 0])]  # along right, front, head
        largest = int(sizes.argmax())
        axis = ("sagittal", "coronal", "axial")[largest if sizes.max() > ALIKE * sizes[2] else 2]
    shown = orientations.axcodes2ornt(AXES[axis])
    turn, back = orientations.ornt_transform(own, shown), orientations.ornt_transform(shown, own)
    turned = affine @ orientations.inv_ornt_aff(turn, shape)
    places = np.argsort(turn[:, 0])
    n, height, width = (shape[place] for place in places)
    return Grid(path, (n, height, width), turned, shape, affine, turn, back, stored)


def open_stack(path: str | Path, axis: str | None = None) -> Stack:
    """A volume with its values, see `open_grid`. What was unpacked lately is kept, up to 2 GiB in a process."""
    path = Path(path)
    try:
        key = (str(path), axis, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"not readable ({error.strerror})", where=path, fix="check the file") from error
    with _LOCK:
        if key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key]
    stack = _read(open_grid(path, axis))
    with _LOCK:
        _KEPT[key] = stack
        while len(_KEPT) > 1 and sum(each.grid.unpacked_bytes for each in _KEPT.values()) > KEPT_BYTES:
            _KEPT.popitem(last=False)
    return stack


def _read(grid: Grid) -> Stack:
    from nibabel import orientations

    if isinstance(grid.stored, list):
        values, slope, intercept = dicom.read_values(grid.stored, grid.path)
    else:
        data = grid.stored.dataobj
        try:
            values = np.asanyarray(data.get_unscaled()).reshape(grid.stored_shape)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise _damaged(grid.path, error) from error
        slope, intercept = float(data.slope), float(data.inter)
    return Stack(grid, orientations.apply_orientation(values, grid.turn), slope, intercept)


def write_volume(path: Path, grid: Grid, values: np.ndarray) -> None:
    """Write values (n, H, W) of the stack `grid` as NIfTI, in the order and with the affine of the file that it is of.

    Args:
        path: ends in `.nii` or `.nii.gz`.
        values: uint8, or float32.
    """
    import nibabel
    from nibabel import orientations

    stored = orientations.apply_orientation(values, grid.turn_back)
    header = None if isinstance(grid.stored, list) else grid.stored.header.copy()
    if header is None:
        header = nibabel.Nifti1Header()
        header.set_xyzt_units("mm")
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    with whole_file(path) as part:
        nibabel.save(kind(np.ascontiguousarray(stored), grid.stored_affine, header), part)


def _load_nifti(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nibabel.load(path)
    except FileNotFoundError as error:
        raise UserError("does not exist", where=path) from error
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, error) from error
    if image.get_data_dtype().kind not in "biuf":
        raise UserError(f"values of type {image.get_data_dtype()}", where=path, fix="store real numbers")
    return image


def _three(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """The shape of a volume without dimensions of 1 behind the third."""
    if len(shape) < 3 or any(side != 1 for side in shape[3:]) or 0 in shape:
        problem = f"{len(shape)} dimensions ({'x'.join(map(str, shape))}), a volume has three"
        raise UserError(problem, where=path, fix="store each volume as a file of its own")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"not a readable NIfTI file ({first_line(error)})", where=path, fix="remove or replace the file")
