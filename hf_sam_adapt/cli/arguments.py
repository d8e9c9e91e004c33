"""The arguments of the commands. Nothing here needs torch, so that `--help` comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config.arguments import option
from ..config.paths import DATASET, FILE, MODEL
from ..config.recipe import Recipe
from ..config.shared_keys import (
    AdaptedModelKeys,
    ComputeKeys,
    DataKeys,
    MaskKeys,
    MetricKeys,
    RouteKeys,
    TileKeys,
    VolumeKeys,
)
from ..errors import UserError
from ..names import METRIC_NAMES, MaskValues, PromptKind


@dataclass
class EvaluateArguments(ComputeKeys, MetricKeys, RouteKeys, TileKeys, MaskKeys, AdaptedModelKeys):
    """Arguments of `hf-sam-adapt evaluate`: an adapter or a plain SAM, and a data set whose test images are scored.

    With a run as adapter and no other data set, what decides which images are test images and how their masks
    are read is the run's unless it is given.
    """

    dataset: str | None = option(
        None, "Folder, Hub id, or synthetic:<domain>; unset, it and the keys of its masks are the run's.", path=DATASET
    )
    mask_values: MaskValues | None = option(None, "How mask values are read; unset = the run's, or auto.")
    id2label: dict[int, str] | list[str] | None = option(
        None, "Names of the data set's classes, compared with the model's; unset = as far as the data set says them."
    )
    seed: int | None = option(None, "Seed of the splits and of the degraded `mask` prompts; unset = 0.")
    prompts: list[PromptKind] | None = option(None, "Kinds to measure; unset = no prompt.")
    metrics: list[str] | None = option(
        None, f"Further metrics without prompts: {' '.join(METRIC_NAMES)}; unset = the run's."
    )
    ignore_background: bool | Literal["official"] | None = option(
        None, "Classes: leave the background out of the scores; unset = the run's."
    )
    clicks: int = option(0, "Also let a simulated user click on each object, at most so often; 20 is usual; 0 = not.")
    prompt_sensitivity: Literal["box", "point"] | None = option(
        None, "Also measure what changes when this prompt is moved to another object or taken away."
    )
    instances: Literal["grid", "components"] | None = option(
        None, "Also the average precision of instances: of a grid of points, or the components of the mask."
    )
    num_workers: int | None = option(
        None, "Processes that load images; 0 = the main process itself; unset = with a GPU by the number of cores."
    )
    output_dir: str | None = option(
        None, "Folder for metrics.json, per_image.csv and pictures; unset = the table is printed only.", path=FILE
    )


@dataclass
class PredictArguments(ComputeKeys, RouteKeys, TileKeys, VolumeKeys, AdaptedModelKeys):
    """Arguments of `hf-sam-adapt predict`."""

    inputs: list[str] = option(
        [], "Image files, folders of images, or glob patterns; NIfTI files, folders of a DICOM series.", path=FILE
    )
    output_dir: str = option("predictions", "Folder for the results and predictions.json.", path=FILE)
    box: list[float] | None = option(None, "Box prompt x0 y0 x1 y1 in pixels, the same for every image.")
    point: list[float] | None = option(None, "Point prompt x y in pixels, the same for every image.")
    instances: Literal["grid", "components"] | None = option(
        None, "Also instances.json: of a grid of points, or the connected components of the promptless mask."
    )
    points_per_side: int = option(16, "Points per side of the grid of --instances grid.")
    min_score: float = option(0.0, "Instances of a lower score, 0..1, are left out.")
    format: (
        list[Literal["png", "labelme", "coco", "yolo", "geojson", "nifti", "geotiff", "cog", "gpkg", "map_geojson"]]
        | None
    ) = option(None, "Formats of the results, one or several; unset = png, of GeoTIFFs geotiff, of volumes nifti.")
    probability: bool = option(False, "Also write the probability of each pixel, where the format has a place for it.")
    threshold: float = option(0.5, "Probability above which a pixel is foreground.")
    simplify: float = option(
        1.0, "Pixels by which the outline of a polygon may move to have fewer corners; 0 = every corner."
    )
    rank: Literal["uncertain"] | None = option(
        None, "Put the images of which the model is least sure first; labelme lists them in this order."
    )
    skip_existing: bool = option(
        False, "Leave images out whose results an earlier call with the same settings has written."
    )


@dataclass
class ExportArguments:
    """Arguments of `hf-sam-adapt export`."""

    run: str | None = option(None, "Run folder, adapter, pool, model folder or Hub id, or `tiny`.", path=MODEL)
    output_dir: str | None = option(None, "Folder to create.", path=FILE)
    format: Literal["onnx", "torch", "sam-pth", "transformers"] = option(
        "onnx",
        "Graphs for onnxruntime or torch.export, or merged weights for segment-anything or transformers.",
    )
    model: str | None = option(None, "Base model in place of the one that the adapter names.", path=MODEL)
    precision: Literal["no", "fp16", "int8"] = option(
        "no", "Of encoders and promptless parts in ONNX; int8 = dynamic quantisation."
    )
    opset: int = option(18, "Of ONNX, 18 or newer.")
    encoder_input: Literal["pixels", "image"] = option(
        "pixels",
        "What the encoder's graph takes: the network's input, or an image of 0..255 that it normalises and pads, as "
        "AnyLabeling hands it over.",
    )
    aot: bool = option(False, "Of --format torch: compile all but the decoder for this kind of processor.")
    dataset: str | None = option(
        None, "Whose test images the result is tried on; unset = the run's, or drawn noise.", path=DATASET
    )
    limit: int = option(16, "Test images at most; 0 = all.")
    max_difference: float | None = option(
        None,
        "Largest difference of a logit, as a share of the image's largest; unset = 1e-4, of fp16 0.02, of int8 0.2.",
    )


OF_RESULTS = ("format", "probability", "threshold", "simplify", "rank", "skip_existing")
OF_INSTANCES = ("instances", "points_per_side", "min_score")
DATA_FORMATS = ("labelme", "coco", "yolo", "cvat", "geojson", "folder", "volumes")
OF_CHECKPOINTS = ("base", "lora_alpha", "image_size", "domains", "classifier", "method_args")
OF_DATA = ("images", "push", "group_by", "encoding")
OF_VOLUMES = ("slice_axis", "window", "neighbours")


@dataclass
class ConvertArguments(VolumeKeys):
    """Arguments of `hf-sam-adapt convert`: of a checkpoint, or of the annotations of a data set."""

    source: str | None = option(
        None,
        "The official checkpoint (only its tensors are read), or the annotations: a folder, zip archive or file.",
        path=FILE,
    )
    format: (
        Literal[
            "sam-adapter",
            "conv-lora",
            "cwsam",
            "cosam",
            "sam2-adapter",
            "sam-hq",
            "sam-pth",
            "labelme",
            "coco",
            "yolo",
            "cvat",
            "geojson",
            "folder",
            "volumes",
        ]
        | None
    ) = option(
        None,
        "What wrote it: conv-lora is AutoGluon's model.ckpt or its folder, cosam also a folder; sam-pth is a whole "
        "SAM of segment-anything; folder is this package's images/ and masks/, to be pushed; volumes unpacks slices.",
        flag="from",
    )
    out: str | None = option(None, "Folder to create for the adapter or the data set.", path=FILE)
    decoder: Literal["full", "none"] = option("full", "Convert the checkpoint's mask decoder, or leave it out.")
    base: str | None = option(
        None,
        "The SAM that was adapted: tiny, folder or Hub id; the frozen weights are compared with it. sam2-adapter "
        "needs its SAM 2.",
        path=MODEL,
    )
    lora_alpha: int | float | None = option(None, "Of conv-lora: scaling times r; unset = the official 32.")
    image_size: int | None = option(
        None, "Side of the input where neither the checkpoint nor a base tells; unset = 1024."
    )
    domains: list[str] | None = option(
        None, "Of a cosam folder: its domains in the order of their training; unset = CoSAM's."
    )
    classifier: str | None = option(
        None, "Of cosam: the router to take where several are of the last task, such as task_classifier_after_3.pth."
    )
    method_args: dict | None = option(
        None,
        "Fields of the adapter's config that no tensor tells, e.g. --method_args.features embedding "
        "high; unset = as published.",
    )
    images: str | None = option(None, "Folder of the images, where they are not beside them.", path=FILE)
    classes: list[str] | None = option(
        None,
        "Names of the classes 1, 2, ... (of a checkpoint also 0, 1, ...); unset = the annotations' order, or by name.",
    )
    layout: Literal["folder", "datasets"] = option(
        "folder", "A folder of images/ and masks/, or what datasets.load_from_disk reads."
    )
    push: str | None = option(None, "Private data set of the Hub to publish them in, owner/name.")
    group_by: str | None = option(
        None, "Regular expression; images whose match is equal stay in one split where they are drawn."
    )
    encoding: str | None = option(
        None, "Encoding of texts that are not Unicode, such as gbk or shift_jis; unset = guessed."
    )


@dataclass
class EstimateArguments(Recipe):
    """A recipe's keys, and where to write the numbers."""

    json: str | None = option(None, "File to write the numbers to, in bytes and seconds.", path=FILE)


@dataclass
class DoctorArguments(DataKeys):
    """Arguments of `hf-sam-adapt doctor`: a data set with the keys of the recipe that say how it is read."""

    model: str | None = option(None, "The model to be trained: tiny, a folder, or a Hub id; unset = tiny.", path=MODEL)
    limit: int | None = option(None, "Examples of each cause; unset = 1, and 20 in the JSON; 0 = all.")
    processes: int | None = option(None, "Processes that read; unset = one per CPU, 0 = the main process itself.")
    json: str | None = option(None, "File for all findings and the numbers of each split.", path=FILE)
    contact_sheet: str | None = option(
        None, "PNG of what a batch will look like, after augmentation and processor.", path=FILE
    )


@dataclass
class PushArguments:
    """Arguments of `push`."""

    folder: str | None = option(None, "Run, adapter, pool or model folder to publish.", path=FILE)
    repo: str | None = option(None, "Repository, owner/name; unset = the folder's name, in your account.")
    public: bool = option(False, "Create a public repository; otherwise it is private.")
    revision: str | None = option(None, "Branch, created if needed; unset = main.")
    repo_type: Literal["model", "space"] = option(
        "model", "space: a folder with app.py, pushed with the package of its checkout."
    )
    space_sdk: Literal["docker", "gradio"] | None = option(
        None, "What a Space runs on: gradio can be on ZeroGPU, docker anywhere; unset = what its README says."
    )

    def __post_init__(self) -> None:
        if self.space_sdk is not None and self.repo_type != "space":
            raise UserError("of a Space", key="space_sdk", fix="add --repo_type space")


@dataclass
class ExportTinyArguments:
    """Arguments of `export-tiny`."""

    folder: str | None = option(None, "Folder to create.", path=FILE)
