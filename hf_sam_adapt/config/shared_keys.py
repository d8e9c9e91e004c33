"""Keys that recipes and commands share: how a data set is read, what is scored, which model runs and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..names import AUGMENTATIONS, MaskValues
from .arguments import option
from .paths import DATASET, MODEL, NAME


SliceAxis = Literal["axial", "coronal", "sagittal"]


@dataclass
class VolumeKeys:
    """How volumes (NIfTI, DICOM) are cut into images; what is unset may be a run's."""

    slice_axis: SliceAxis | None = option(
        None, "Axis across which volumes are cut; unset = across the largest voxels, axial where they are cubes."
    )
    window: list[float] | None = option(
        None, "Level and width of the values of a volume that is seen, e.g. 40 400; unset = 1st to 99th percentile."
    )
    neighbours: int | None = option(
        None, "Slices on each side that are further channels: 1 makes the three colours, more need channels."
    )


@dataclass
class MaskKeys(VolumeKeys):
    """Where a data set is, and how its images and masks are paired and split; what is unset may be a run's."""

    dataset: str | None = option(None, "Folder with images/ and masks/, Hub id, or synthetic:<domain>.", path=DATASET)
    group_by: str | None = option(None, "Regular expression; images whose match is equal stay in one split.")
    mask_suffix: str | None = option(None, "What a mask's file name has after the image's, e.g. _mask.")
    mask_threshold: float | None = option(None, "Mask values above it are foreground; unset = 0, of JPEG 127.")
    label_map: dict[int, int] | None = option(None, "Mask value -> value on reading, 255 = ignore.")
    palette: str | dict[str, list[int]] | None = option(
        None,
        "Colours of the classes of RGB masks: FUSAR_MAP_1, FUSAR_MAP_2, a .yaml file, or name -> [r, g, b].",
        path=NAME,
    )


@dataclass
class TileKeys:
    """How large images are cut."""

    tile: int | Literal["auto"] | None = option(
        None,
        "Side in pixels of the tiles that images are cut into; auto = the network's input, for images more than "
        "twice as large; unset = a run's, or images are not cut.",
    )
    overlap: int | Literal["auto"] | None = option(
        None, "Pixels that neighbouring tiles share; auto and unset = an eighth of the tile."
    )


@dataclass
class DataKeys(TileKeys, MaskKeys):
    """How a data set becomes the input of a network."""

    mask_values: MaskValues = option("auto", "How mask values are read.")
    num_labels: int | None = option(None, "Number of classes with the background; unset = one foreground class.")
    id2label: dict[int, str] | list[str] | None = option(None, "Class id -> name, or all names in order.")
    channels: int | None = option(None, "Channels of images read as they are stored; unset = RGB photographs.")
    normalization: Literal["imagenet", "minmax", "percentile", "zscore", "db"] | None = option(
        None, "Per channel, fitted to the training images; unset = imagenet, with channels percentile."
    )
    image_size: int | None = option(
        None, "Side of the network's input, a multiple of the patch size; unset = the model's."
    )
    resize: Literal["pad", "squash"] | None = option(
        None, "Keep the aspect ratio (pad) or not (squash); unset = the model's."
    )
    augment: list[str] = option(["flip", "scale", "colour"], f"Augmentations: {' '.join(AUGMENTATIONS)}, or none.")
    seed: int = option(0, "Seed of the splits and of everything else that is random.")


@dataclass
class RouteKeys:
    """Where the tiles of an image go."""

    route: Literal["image", "tile"] = option(
        "image", "Of a pool with tiles: its router chooses for each image as a whole, or for each tile."
    )


@dataclass
class MetricKeys:
    """Settings of metrics, each for those that take it."""

    beta2: float | None = option(
        None, "Weight β² of precision in f_measure and weighted_f; unset = 0.3 and 1, as most publications have it."
    )
    ber_threshold: float | None = option(
        None, "Probability above which a pixel is foreground for ber; unset = 0.5, SAM-Adapter's code 125/255."
    )
    surface_tolerance: float = option(1.0, "Volumes: millimetres within which surfaces agree, for their surface Dice.")


@dataclass
class AdaptedModelKeys:
    """What is predicted with."""

    adapter: str | None = option(
        None, "Adapter, a run folder or Hub id; unset = the plain SAM of --model.", path=MODEL
    )
    model: str | None = option(
        None, "`tiny`, a model folder, or a Hub id; unset = the adapter's own base.", path=MODEL
    )
    domain: str | None = option(None, "Domain of a pool, or `base`; unset = what its router chooses for each image.")


@dataclass
class ComputeKeys:
    """How a model computes."""

    batch_size: int = option(4, "Images that a process takes at once; in training, of one micro-step.")
    precision: Literal["no", "bf16", "fp16"] = option("no", "Mixed precision.")
    attention: Literal["auto", "folded", "sdpa", "eager"] = option(
        "auto", "How the encoder computes its attention; auto = the fastest measured, of the same result."
    )
