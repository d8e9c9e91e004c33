"""A DICOM series: the slices of one volume, a file each, in a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError, first_line, require_extra
from ..folder import IMAGE_SUFFIXES
from ..walk import files_below


PREAMBLE = 128  # bytes before the letters that mark a DICOM file
UNEVEN = 0.05  # of the distance between slices, by which it may vary
_OTHERS = IMAGE_SUFFIXES | {".gz", ".json", ".nii", ".npy", ".txt", ".xml", ".yaml"}  # which need not be opened
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def is_series(folder: Path) -> bool:
    """Whether a folder itself holds DICOM files."""
    files = files_below(folder, deep=False) if folder.is_dir() else []
    return any(is_dicom(path) for path in files if path.suffix.lower() not in _OTHERS)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False


def read_series(folder: Path) -> tuple[list[Any], np.ndarray]:
    """The headers of a series in the order of its slices, and where its voxels lie.

    Returns:
        Data sets of pydicom without pixels, and the affine float64 (4, 4) from (column, row, slice) to millimetres,
        x to the patient's right, y to the front, z to the head (RAS, as NIfTI has it).

    Raises:
        UserError: no file or a damaged one, several series or frames, slices of other sizes or directions, twice the
            same slice, or missing slices.
    """
    require_extra("volumes", "reading DICOM")
    import pydicom

    headers = []
    for path in files_below(folder, deep=False):
        if is_dicom(path):
            try:
                headers.append(pydicom.dcmread(path, stop_before_pixels=True))
            except (OSError, EOFError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
                raise _damaged(path, error) from error
    if not headers:
        raise UserError("no DICOM file in it", where=folder, fix="name the folder of one series")
    _check_alike(headers, folder)
    turn = np.asarray(headers[0].ImageOrientationPatient, np.float64).reshape(2, 3)  # along a row, along a column
    normal = np.cross(*turn)
    places = np.array([header.ImagePositionPatient for header in headers], np.float64)  # (n, 3)
    order = np.argsort(places @ normal, kind="stable")
    headers, places = [headers[index] for index in order], places[order]
    step = _step(places @ normal, folder)
    if step is None:  # a single slice
        step = float(getattr(headers[0], "SliceThickness", None) or 1)
        along = normal * step
    else:
        along = (places[-1] - places[0]) / (len(places) - 1)
    down, right = (float(spacing) for spacing in headers[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([turn[0] * right, turn[1] * down, along, places[0]], axis=1)
    return headers, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's x points to the left, y to the back


def read_values(headers: list[Any], folder: Path) -> tuple[np.ndarray, float, float]:
    """The stored values of a series, (columns, rows, slices), and the slope and intercept that give its units."""
    import pydicom

    scales = {_scale(header) for header in headers}
    slices = []
    for header in headers:
        try:
            data = pydicom.dcmread(header.filename)
            values = data.pixel_array
        except (OSError, EOFError, ValueError, AttributeError, KeyError, RuntimeError, NotImplementedError) as error:
            raise _damaged(Path(header.filename), error) from error
        if values.ndim != 2:
            raise UserError("colours, a volume has one value a voxel", where=header.filename, fix="export it as grey")
        if len(scales) > 1:  # PET scales each slice on its own
            slope, intercept = _scale(header)
            values = values.astype(np.float32) * slope + intercept
        slices.append(values)
    slope, intercept = scales.pop() if len(scales) == 1 else (1.0, 0.0)
    return np.stack(slices).transpose(2, 1, 0), slope, intercept  # (n, H, W) -> (W, H, n)


def _scale(header: Any) -> tuple[float, float]:
    """Slope and intercept of a slice, which leave its values as they are where it names none."""
    slope, intercept = (getattr(header, f"Rescale{name}", None) for name in ("Slope", "Intercept"))
    return float(1 if slope is None else slope), float(0 if intercept is None else intercept)


def _check_alike(headers: list[Any], folder: Path) -> None:
    """Refuse what is not one stack of parallel slices of one size."""
    for header in headers:
        lacking = [name for name in _GEOMETRY if getattr(header, name, None) is None]
        if lacking or int(getattr(header, "NumberOfFrames", None) or 1) > 1:
            problem = f"it has no {lacking[0]}" if lacking else "several frames in one file"
            raise UserError(problem, where=header.filename, fix="export the series as one file a slice, or as NIfTI")
    series = sorted({str(getattr(header, "SeriesInstanceUID", "")) for header in headers})
    if len(series) > 1:
        listed = f"{len(series)} series, such as {series[0]} and {series[1]}"
        raise UserError(listed, where=folder, fix="put each into a folder of its own", code="several-series")
    for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        first = np.asarray(getattr(headers[0], name), np.float64)
        for header in headers:
            if not np.allclose(np.asarray(getattr(header, name), np.float64), first, rtol=1e-3, atol=1e-3):
                raise UserError(
                    f"another {name} than {Path(headers[0].filename).name}",
                    where=header.filename,
                    fix="remove localisers and other series from the folder",
                )


def _step(heights: np.ndarray, folder: Path) -> float | None:
    """The distance between slices at rising `heights` (n,) in millimetres, None of a single one."""
    if len(heights) == 1:
        return None
    gaps = np.diff(heights)
    step = float(np.median(gaps))
    if (gaps < UNEVEN * max(step, 1e-3)).any():
        raise UserError("two slices lie at one place", where=folder, fix="remove one of them", code="same-slice")
    wide = np.flatnonzero(gaps > (1 + UNEVEN) * step)
    if len(wide):
        missing = int(sum(max(1, round(gaps[place] / step) - 1) for place in wide))
        first = int(wide[0])
        between = f"between {heights[first]:g} and {heights[first + 1]:g} mm"
        raise UserError(
            f"{missing} of {len(heights) + missing} slices are missing, {between} first",
            where=folder,
            fix="export the whole series",
            code="missing-slices",
        )
    if (gaps < (1 - UNEVEN) * step).any():
        apart = f"slices {gaps.min():g} to {gaps.max():g} mm apart"
        raise UserError(apart, where=folder, fix="resample the series", code="uneven-slices")
    return step


def _damaged(path: Path, error: BaseException) -> UserError:
    fix = "export the series again, uncompressed"
    return UserError(f"not a readable DICOM file ({first_line(error)})", where=path, fix=fix)
