"""What was written, run beside PyTorch on test images: the largest difference, and the scores of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ...config.shared_keys import MaskKeys
from ...data import SegmentationSplit, load_segmentation_dataset
from ...data.dataset import Sample
from ...data.volumes.folder import is_volume_set
from ...errors import UserError
from ...evaluation.evaluate import prompts_of
from ...files import BASE
from ...inference.forward import encode, pool_of, segment
from ...inference.loading import Loaded
from ...inference.variants import inference, largest_class, merge_objects, model_inputs, place_prompts
from ...metrics import ConfusionMatrix, mean_overlap, overlap
from ...prompts import Prompt
from ...sam.image_embeddings import ImageEmbeddings
from ...sam.processing import SamAdaptProcessor
from ...training.earlier_run import EarlierRun
from .graphs import EMBEDDINGS, Decoder
from .parts import Part
from .programs import Run


@dataclass(frozen=True)
class Segmented:
    """What a model makes of one image and prompt.

    Attributes:
        logits: (n, h, w) of n objects, or (K, h, w) of K classes.
        mask: bool (H, W), or uint8 (H, W) of classes, at the image's size.
    """

    logits: torch.Tensor
    mask: np.ndarray


class Exported(Protocol):
    """What was written, loaded again.

    Attributes:
        tried: of a pool, the domains that it has files for, plain SAM included; empty for other models.
    """

    tried: Sequence[str]

    def encode(self, image: np.ndarray, inputs: Mapping[str, Any], domain: str | None = None) -> Any:
        """The embeddings of an image, of whatever form, in a pool by `domain` in place of the router's choice.

        Args:
            inputs: what the processor made of the image.
        """

    def segment(self, embeddings: Any, inputs: Mapping[str, Any], prompt: Prompt) -> Segmented:
        """By a prompt in coordinates of the network's input."""

    def domain(self, embeddings: Any) -> str | None:
        """The domain that the router chose; None without a pool."""


@dataclass(frozen=True)
class Comparison:
    """Of the test images by one kind of prompt.

    Attributes:
        kind: of the prompt.
        iou, exported_iou: mean IoU of PyTorch's masks and of the exported model's, of classes the mean over them; None
            where the images have no masks.
        difference: largest difference of a logit, as a share of the image's largest.
        pixels: share of the pixels whose mask differs.
    """

    kind: str
    iou: float | None
    exported_iou: float | None
    difference: float
    pixels: float


class TestImages:
    """The images to compare on.

    Attributes:
        name: of where they come from.
        images: with masks, or without where they are drawn.
        total: how many there are to choose from.
    """

    __test__ = False  # for pytest

    def __init__(self, name: str, images: Sequence[Sample], total: int, has_masks: bool) -> None:
        self.name, self.images, self.total, self.has_masks = name, images, total, has_masks

    @classmethod
    def of(cls, earlier: EarlierRun | None, dataset: str | None, loaded: Loaded, limit: int) -> TestImages:
        """The first `limit` test images (0: all) of `dataset`, or of the run's, or drawn noise where neither is known.

        Raises:
            UserError: the data set cannot be read, or has other classes than the model.
        """
        keys = (*(field.name for field in fields(MaskKeys)), "mask_values", "seed")
        chosen: dict[str, Any] = {} if earlier is None else earlier.taken(keys)
        if dataset is not None and (earlier is None or not earlier.is_of(dataset)):
            chosen = {"dataset": dataset}
        if chosen.get("dataset") is None:
            return cls("drawn noise", _noise(loaded.processor), 2, False)
        if loaded.processor.slices is not None and is_volume_set(chosen["dataset"]):
            chosen = loaded.processor.slices | {key: value for key, value in chosen.items() if value is not None}
        config, classes = loaded.config, loaded.classes
        known = None if earlier is None else earlier.known(chosen["dataset"])
        data = load_segmentation_dataset(
            **chosen,
            channels=loaded.processor.channels,
            num_labels=getattr(config, "num_labels", None),
            id2label=None if classes is None else dict(enumerate(classes)),
            known=known,
        )
        name, split = data.measured
        count = min(len(split), limit or len(split))
        return cls(f"{name} images of {data.name}", _First(split, count), len(split), True)


class _First(Sequence[Sample]):
    def __init__(self, split: SegmentationSplit, count: int) -> None:
        self.split, self.length = split, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.split[index]


def _noise(processor: SamAdaptProcessor) -> list[Sample]:
    """Two images that are not square, with an object to prompt for in the middle."""
    rng, side = np.random.default_rng(0), processor.image_size
    samples = []
    for index, (height, width) in enumerate(((side, side * 2 // 3), (side // 2, side * 5 // 4))):
        image: np.ndarray
        if processor.channels is None:
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        else:
            image = rng.random((height, width, processor.channels), dtype=np.float32)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 1
        samples.append(Sample(image, mask, f"noise {index}", index))
    return samples


def compare(
    loaded: Loaded, exported: Exported, tested: TestImages, kinds: Sequence[str]
) -> tuple[list[Comparison], float | None]:
    """Segment each image by both models, in a pool by every domain; the scores are of the router's choice.

    Args:
        loaded: the model as it is in PyTorch.
        kinds: of the prompts, derived from the masks.

    Returns:
        A comparison for each kind, and of a pool the share of images that both routers send to the same domain.
    """
    processor, classes = loaded.processor, loaded.classes
    scores = {kind: _Scores(None if classes is None else len(classes)) for kind in kinds}
    routed: list[bool] = []
    with inference([loaded.model]):
        for sample in tested.images:
            inputs = model_inputs(processor, [sample])
            embeddings = encode(loaded.model, inputs["pixel_values"])
            theirs = exported.encode(sample.image, inputs)
            pool = pool_of(loaded.model)
            if pool is not None and embeddings.domains is not None:
                chosen = exported.domain(theirs)
                routed.append(chosen == pool.names_of(embeddings.domains)[0])
                if chosen is not None and not routed[-1]:  # the masks of one domain are compared with its own
                    with pool.using(chosen):
                        embeddings = encode(loaded.model, inputs["pixel_values"])
            pairs = [(embeddings, theirs)]
            for domain in exported.tried:
                with pool.using(domain):  # type: ignore[union-attr]
                    ours_of_domain = encode(loaded.model, inputs["pixel_values"])
                pairs.append((ours_of_domain, exported.encode(sample.image, inputs, domain)))
            for kind, prompt in prompts_of(sample.mask, kinds, sample.index).items():
                placed = place_prompts(processor, inputs, [prompt])[0]
                if kind != "none" and not len(placed):
                    continue
                for place, (ours, other) in enumerate(pairs):
                    expected = reference(loaded.model, processor, ours, inputs, placed, classes is not None)
                    found = exported.segment(other, inputs, placed)
                    scores[kind].add(sample, expected, found, scored=place == 0)
    share = sum(routed) / len(routed) if routed else None
    return [scores[kind].comparison(kind, tested.has_masks) for kind in kinds if scores[kind].differences], share


def reference(
    model: nn.Module,
    processor: SamAdaptProcessor,
    embeddings: ImageEmbeddings,
    inputs: Mapping[str, Any],
    prompt: Prompt,
    classes: bool,
) -> Segmented:
    """What a model in PyTorch makes of one image."""
    logits = segment(model, None, [prompt], image_embeddings=embeddings)[0]
    return Segmented(logits, masked(processor, inputs, logits, classes))


def masked(processor: SamAdaptProcessor, inputs: Mapping[str, Any], logits: torch.Tensor, classes: bool) -> np.ndarray:
    """The mask of one image at its size, as `predict` makes it of logits (n, h, w)."""
    if classes:
        return largest_class(processor, inputs, [logits])[0]
    return (merge_objects(processor, inputs, [logits])[0] > 0).numpy()


class _Scores:
    def __init__(self, num_labels: int | None) -> None:
        self.num_labels = num_labels
        self.differences: list[float] = []
        self.unequal, self.pixels = 0, 0
        self.overlaps: tuple[list, list] = ([], [])
        self.matrices = () if num_labels is None else (ConfusionMatrix(num_labels), ConfusionMatrix(num_labels))

    def add(self, sample: Sample, ours: Segmented, theirs: Segmented, scored: bool) -> None:
        largest = ours.logits.abs().max().clamp(min=1e-12)
        self.differences.append(float((ours.logits - theirs.logits).abs().max() / largest))
        self.unequal += int((ours.mask != theirs.mask).sum())
        self.pixels += ours.mask.size
        for index, found in enumerate((ours, theirs) if scored else ()):
            if self.matrices:
                self.matrices[index].update(found.mask, sample.mask)
            else:
                self.overlaps[index].append(overlap(found.mask, sample.mask))

    def comparison(self, kind: str, has_masks: bool) -> Comparison:
        ious: list[float | None] = [None, None]
        if has_masks and self.matrices:
            ious = [matrix.compute()["miou"] for matrix in self.matrices]
        elif has_masks:
            ious = [mean_overlap(overlaps)["iou"] for overlaps in self.overlaps]
        # A NaN is larger than any bound.
        worst = max(self.differences, key=lambda value: value if value == value else float("inf"))
        return Comparison(kind, ious[0], ious[1], worst, self.unequal / self.pixels)


class ExportedModel:
    """A SAM of transformers that was written and loaded again, called as its users do."""

    tried: Sequence[str] = ()

    def __init__(self, model: nn.Module, processor: SamAdaptProcessor) -> None:
        self.model, self.processor = model, processor

    def encode(self, image: np.ndarray, inputs: Mapping[str, Any], domain: str | None = None) -> torch.Tensor:
        """The network's input; the model encodes it for each prompt."""
        return inputs["pixel_values"]

    def segment(self, embeddings: torch.Tensor, inputs: Mapping[str, Any], prompt: Prompt) -> Segmented:
        fields = {"input_boxes": prompt.boxes, "input_points": prompt.points, "input_labels": prompt.point_labels}
        given = {key: torch.as_tensor(value)[None] for key, value in fields.items() if value is not None}
        masks = self.model(pixel_values=embeddings, multimask_output=False, **given).pred_masks
        logits = masks[0, :, 0]  # (n, h, w) of (1, n, 1, h, w)
        return Segmented(logits, masked(self.processor, inputs, logits, False))

    def domain(self, embeddings: torch.Tensor) -> str | None:
        return None


class ExportedParts:
    """Files of parts, run one after the other as a user of them would.

    Args:
        parts: what was written, and how each is run; a file is opened when it is first needed.
        processor: of the model.
        classes: whether it segments classes.
        encoder_input: see `parts_of`.
        domains: of a pool, in its order.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[Part, Callable[[], Run]]],
        processor: SamAdaptProcessor,
        classes: bool,
        encoder_input: str,
        domains: Sequence[str] | None,
    ) -> None:
        self.parts, self.processor, self.classes = parts, processor, classes
        self.encoder_input, self.domains = encoder_input, domains
        self.tried: Sequence[str] = list(dict.fromkeys(name.partition("/")[0] for name in parts if "/" in name))
        self._runs: dict[str, Run] = {}

    def encode(self, image: np.ndarray, inputs: Mapping[str, Any], domain: str | None = None) -> dict[str, Any]:
        """Outputs by name of router and encoder, with the network's input and the domain."""
        if self.encoder_input == "image":
            given = resized_for_annotators(image, self.processor)
        else:
            given = inputs["pixel_values"].numpy()
        state: dict[str, Any] = {"image": given, "where": ""}
        if self.domains is not None:
            state |= self._run("router", state)
            place = int(state["domain"][0])
            state["chosen"] = domain or (BASE if place < 0 else self.domains[place])
            state["where"] = f"{state['chosen']}/"
        if f"{state['where']}encoder" in self.parts:
            state |= self._run(f"{state['where']}encoder", state)
        return state

    def segment(self, embeddings: dict[str, Any], inputs: Mapping[str, Any], prompt: Prompt) -> Segmented:
        state, where = embeddings, embeddings["where"]
        if prompt.kind == "none":
            logits = torch.from_numpy(self._run(f"{where}promptless", state)["logits"][0])
            return Segmented(logits, masked(self.processor, inputs, logits, self.classes))
        decoder = self.parts[f"{where}decoder"][0].module
        assert isinstance(decoder, Decoder)
        coords, labels = point_arrays(prompt, padded=not decoder.pads)
        rows = len(coords)
        state = {
            name: np.repeat(state[name], rows, int(name == "interm_embeddings")) for name in EMBEDDINGS & state.keys()
        } | {
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": np.zeros((rows, 1, *[self.processor.mask_size] * 2), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": inputs["original_sizes"][0].numpy().astype(np.float32),
        }
        outputs = self._run(f"{where}decoder", state)
        return Segmented(
            torch.from_numpy(outputs["low_res_masks"][:, 0]), np.asarray((outputs["masks"] > 0).any((0, 1)))
        )

    def domain(self, embeddings: dict[str, Any]) -> str | None:
        return embeddings.get("chosen")

    def _run(self, name: str, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        part, opened = self.parts[name]
        if name not in self._runs:
            self._runs[name] = opened()
        return dict(zip(part.outputs, self._runs[name]({key: state[key] for key in part.inputs})))


def point_arrays(prompt: Prompt, padded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n, N, 2) and labels (n, N) as an exported decoder takes them, of boxes or points.

    Args:
        padded: points without a box are followed by one that is none, as in SAM's training.
    """
    if prompt.boxes is not None:
        boxes = torch.as_tensor(prompt.boxes).float().numpy()
        return boxes.reshape(-1, 2, 2), np.tile(np.array([2, 3], np.float32), (len(boxes), 1))
    points, labels = torch.as_tensor(prompt.points).float(), torch.as_tensor(prompt.point_labels).float()
    if padded:
        points = torch.cat([points, points.new_zeros(len(points), 1, 2)], 1)
        labels = torch.cat([labels, -labels.new_ones(len(labels), 1)], 1)
    return points.numpy(), labels.numpy()


def resized_for_annotators(image: np.ndarray, processor: SamAdaptProcessor) -> np.ndarray:
    """The image (H, W, 3) at the size that it has inside the network's input, float32 of 0..255."""
    inputs = processor.pack([image])
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    return inputs["pixel_values"][0, :, :height, :width].permute(1, 2, 0).float().contiguous().numpy()


def kinds_of(loaded: Loaded, earlier: EarlierRun | None) -> list[str]:
    """The kinds of prompts that a model was trained with; of a plain SAM box and point."""
    if loaded.plain:
        return ["box", "point"]
    found = [] if earlier is None else earlier.recipe.get("prompts", [])
    return list(found) or ["none"]


def check_dataset_named(dataset: str | None, earlier: EarlierRun | None) -> None:
    """Raise `UserError` where the run's data set has gone, before anything is written."""
    if dataset is not None or earlier is None:
        return
    own = earlier.taken(["dataset"]).get("dataset")
    if isinstance(own, str) and (os.path.isabs(own) or own.startswith(".")) and not os.path.exists(own):
        raise UserError(
            f"{earlier.name} was trained on {own}, which is not there", key="dataset", fix="name its data set"
        )
