"""Drawn volumes as NIfTI and as DICOM series: the same voxels in the same places."""

from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def draw_volume(rng, shape=(6, 40, 52)):
    """int16 values (slices, rows, columns), like those of a CT, and a mask of ellipsoids uint8."""
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), -1).astype(float)
    mask = np.zeros(shape, np.uint8)
    for _ in range(2):
        centre = np.array(shape) * rng.uniform(0.35, 0.65, 3)
        radii = np.array(shape) * rng.uniform(0.15, 0.3, 3)
        mask |= ((((grid - centre) / radii) ** 2).sum(-1) < 1).astype(np.uint8)
    values = rng.normal(0, 20, shape) + 180 * mask - 40
    return values.round().astype(np.int16), mask


def affine_of(spacing=(3.0, 0.8, 0.7), origin=(-12.0, 30.0, 5.0)):
    """From (column, row, slice) of an axial series, rows to the back and columns to the left, to RAS millimetres."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    affine[:3, 3] = origin
    return affine


def save_nifti(path: Path, values: np.ndarray, affine=None, turn=None) -> Path:
    """Values (slices, rows, columns); `turn` reorients the stored array, such as ("R", "A", "S")."""
    image = nibabel.Nifti1Image(
        np.ascontiguousarray(values.transpose(2, 1, 0)), affine_of() if affine is None else affine
    )
    if turn is not None:
        own = nibabel.orientations.io_orientation(image.affine)
        image = image.as_reoriented(nibabel.orientations.ornt_transform(own, nibabel.orientations.axcodes2ornt(turn)))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def save_series(folder: Path, values: np.ndarray, affine=None, slope=1.0, intercept=0.0, leave_out=()) -> Path:
    """A DICOM series of values (slices, rows, columns), int16, stored as (value - intercept) / slope."""
    affine = affine_of() if affine is None else affine
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    folder.mkdir(parents=True, exist_ok=True)
    series, frame = generate_uid(), generate_uid()
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    names = np.random.default_rng(3).permutation(len(values))  # file names say nothing of the order
    for number, plane in enumerate(values):
        if number in leave_out:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(str(folder / f"im{names[number]}"), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.FrameOfReferenceUID, data.Modality = series, frame, "CT"
        data.InstanceNumber = number + 1
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        data.ImageOrientationPatient = (lps[:3, :2] / spacing[:2]).T.ravel().tolist()
        data.ImagePositionPatient = (lps @ [0, 0, number, 1])[:3].tolist()
        data.SliceThickness = float(spacing[2])
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = ((plane - intercept) / slope).round().astype("<i2").tobytes()
        data.save_as(folder / f"im{names[number]}", enforce_file_format=True)
    return folder


def write_set(root, count=7, series=(), mask_affine=None, shape=(6, 40, 52)):
    """`count` volumes in images/ and masks/, those in `series` as DICOM."""
    drawn = []
    for number in range(count):
        values, mask = draw_volume(np.random.default_rng(number), shape)
        name = f"case_{number}"
        if number in series:
            save_series(root / "images" / name, values, intercept=-1024)
        else:
            save_nifti(root / "images" / f"{name}.nii.gz", values)
        save_nifti(root / "masks" / f"{name}.nii.gz", mask, mask_affine)
        drawn.append((values, mask))
    return drawn


def save_sliced_run(folder, sam_folder, method, arguments, **slices):
    """An adapter whose processor says how volumes are cut."""
    from sams import perturb

    from hf_sam_adapt import SamAdaptProcessor
    from hf_sam_adapt.inference.loading import build_model, load_base, save_adapter

    base, _ = load_base(sam_folder)
    save_adapter(perturb(build_model(method, arguments, base), std=0.2), folder)
    SamAdaptProcessor(image_size=64, patch_size=8, slices=slices or None).save_pretrained(folder)
    return str(folder)
