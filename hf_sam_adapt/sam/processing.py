"""The image processor: images, masks and prompts at any size become what a SAM takes, and logits go back."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..data.encoding import decode_masks
from ..data.images import IGNORE
from ..data.normalization import check_normalization, normalize
from ..errors import UserError
from ..names import check_image_size
from ..prompts import Prompt, boolean_masks, centres
from .image_inputs import ImageLike, as_list, checked_mask, checked_objects, image_array, matched
from .resampling import RESAMPLING, resampling_name, resized


RESIZE_MODES = ("pad", "squash")
ARITHMETICS = ("pillow", "torchvision")
MASK_LOGIT = 10.0


class SamAdaptProcessor(BaseImageProcessor):
    """Resizes, normalises and pads as transformers' processors do (equal pixel values), without torchvision.

    Args:
        image_size: side S of the network's square input, a multiple of `patch_size`.
        patch_size: side of a ViT patch; the mask logits have 4 S / patch_size pixels a side.
        resize: "pad" keeps the aspect ratio (longest side S, zeros right and below), "squash" stretches to S x S.
        image_mean, image_std: normalisation of RGB in 0..1.
        channels: C of images that are read as they are stored; None = RGB photographs.
        normalization: what `fit_normalization` returned, used in place of `image_mean` and `image_std`; needed with
            `channels`.
        resample: "bilinear" or "bicubic", or Pillow's number of it.
        antialias: False reads the pixels around a place alone, whatever the scale, as CoSAM's code does.
        arithmetic: "pillow", as `SamImageProcessor` computes, or "torchvision", as the processors of SAM 2 and 3 do.
        slices: how the volumes of its training were cut into images, see `SliceKeys`; None for images.
        tiling: `tile` and `overlap` of its training, where images were cut.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 1024,
        patch_size: int = 16,
        resize: str = "pad",
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        channels: int | None = None,
        normalization: Mapping[str, Any] | None = None,
        resample: str | int = "bilinear",
        antialias: bool = True,
        arithmetic: str = "pillow",
        slices: Mapping[str, Any] | None = None,
        tiling: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if resize not in RESIZE_MODES:
            raise UserError(f"{resize!r} is unknown", key="resize", fix=f"choose from {', '.join(RESIZE_MODES)}")
        if arithmetic not in ARITHMETICS:
            raise UserError(
                f"{arithmetic!r} is unknown", key="arithmetic", fix=f"choose from {', '.join(ARITHMETICS)}"
            )
        check_image_size(image_size, patch_size, "a model of such patches")
        self.image_size = image_size
        self.patch_size = patch_size
        self.resize = resize
        self.resample = resampling_name(resample)
        self.antialias = antialias
        self.arithmetic = arithmetic
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        if channels is not None and normalization is None:
            raise UserError(
                f"images of {channels} channels need one", key="normalization", fix="fit it with fit_normalization"
            )
        self.channels = channels
        self.slices, self.tiling = (None if value is None else dict(value) for value in (slices, tiling))
        self.normalization = None if normalization is None else check_normalization(normalization, channels or 3)

    @property
    def mask_size(self) -> int:
        """Side of the decoder's mask logits: four times the token grid."""
        return 4 * (self.image_size // self.patch_size)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        masks: ImageLike | Sequence[ImageLike] | None = None,
        prompts: Prompt | Sequence[Prompt] | None = None,
        return_tensors: str = "pt",
        mask_values: str = "auto",
    ) -> BatchFeature:
        return self.preprocess(images, masks, prompts, return_tensors, mask_values)

    def preprocess(
        self,
        images: ImageLike | Sequence[ImageLike],
        masks: ImageLike | Sequence[ImageLike] | None = None,
        prompts: Prompt | Sequence[Prompt] | None = None,
        return_tensors: str = "pt",
        mask_values: str = "auto",
    ) -> BatchFeature:
        """Prepare one image or a list of them, of any sizes.

        Args:
            images: PIL images, uint8/uint16 arrays (H, W, 3) or (H, W), or uint8 tensors, channels first or last. With
                `channels` arrays (H, W, C), or (H, W) for one channel, and tensors of any real type in the units that
                the normalisation was fitted to.
            masks: per image (H, W), classes and 255 = ignore, or read as `mask_values` says.
            prompts: per image a `Prompt` in image coordinates.
            return_tensors: only "pt".
            mask_values: "auto" (masks of 0 and 255 alone: 255 = foreground, with a warning), "binary" or "index".

        Returns:
            `pixel_values` float32 (B, C, S, S), C = 3 for photographs; `original_sizes` and `reshaped_input_sizes`
            int64 (B, 2), (height, width); with masks `labels` int64 (B, S, S), 255 on the padding; with prompts
            `prompts`, a list of `Prompt` with tensors in input coordinates (see there).

        Raises:
            UserError: masks or prompts that do not fit their images, an unsupported array, or values of no class.
        """
        if return_tensors != "pt":
            raise UserError(f"{return_tensors!r} is not supported, only 'pt' is", key="return_tensors")
        data = self.pack(images, masks, prompts, mask_values)
        data["pixel_values"] = self.unpack(data["pixel_values"], data["reshaped_input_sizes"])
        if masks is not None:
            data["labels"] = data["labels"].long()
        return BatchFeature(data)

    def pack(
        self,
        images: ImageLike | Sequence[ImageLike],
        masks: ImageLike | Sequence[ImageLike] | None = None,
        prompts: Prompt | Sequence[Prompt] | None = None,
        mask_values: str = "auto",
    ) -> dict[str, Any]:
        """As `preprocess`, in a quarter of the bytes: what a loader hands to the device.

        Returns:
            What `preprocess` returns, but `labels` uint8, and `pixel_values` of photographs uint8 (B, 3, S, S), which
            `unpack` turns into the network's input. With `normalization` they are that input already.
        """
        images = [image_array(image, self.channels) for image in as_list(images)]
        if not images:
            raise UserError("none given", key="images")
        sizes = [image.shape[:2] for image in images]
        how = (self.resample, self.antialias, self.arithmetic)
        inputs = [resized(image, self.reshaped_size(image.shape[:2]), *how) for image in images]
        masks = matched(masks, sizes, "masks")
        prompts = matched(prompts, sizes, "prompts")

        data: dict[str, Any] = {
            "pixel_values": torch.from_numpy(np.stack([self._padded(image) for image in inputs])),
            "original_sizes": torch.tensor(sizes, dtype=torch.int64),
            "reshaped_input_sizes": torch.tensor([image.shape[:2] for image in inputs], dtype=torch.int64),
        }
        if masks is not None:
            stored = [checked_mask(mask, size) for mask, size in zip(masks, sizes)]
            masks = decode_masks(stored, mask_values)
            data["labels"] = torch.from_numpy(np.stack([self._resize_labels(mask) for mask in masks]))
        if prompts is not None:
            data["prompts"] = self.transform_prompts(prompts, sizes, labels=data.get("labels"))
        return data

    def unpack(self, pixel_values: torch.Tensor, reshaped_input_sizes: torch.Tensor) -> torch.Tensor:
        """The network's input of `pixel_values` from `pack`, on their device: bit for bit the same on each.

        Args:
            pixel_values: uint8 (B, 3, S, S); float32 ones are returned as they are.
            reshaped_input_sizes: int64 (B, 2), (height, width) inside the padding.

        Returns:
            float32 (B, 3, S, S), zeros on the padding.
        """
        if pixel_values.dtype != torch.uint8:
            return pixel_values
        # Each channel has 256 possible results, computed in the order and precision of transformers' processors.
        levels = np.arange(256, dtype=np.float64)
        mean, std = np.asarray(self.image_mean, np.float32), np.asarray(self.image_std, np.float32)
        if self.arithmetic == "pillow":
            levels = levels * (1 / 255)
        else:
            mean, std = mean * np.float32(255), std * np.float32(255)
        levels = levels.astype(np.float32)
        table = torch.from_numpy((levels - mean[:, None]) / std[:, None]).to(pixel_values.device)  # (3, 256)
        values = torch.stack([row[own.int()] for row, own in zip(table, pixel_values.unbind(1))], dim=1)
        height, width = reshaped_input_sizes.to(pixel_values.device)[:, :, None].unbind(1)  # (B, 1) each
        places = torch.arange(self.image_size, device=pixel_values.device)
        outside = (places >= height)[:, None, :, None] | (places >= width)[:, None, None]  # (B, 1, S, S)
        return values.masked_fill_(outside, 0)

    def transform_prompts(
        self,
        prompts: Sequence[Prompt],
        original_sizes: torch.Tensor | Sequence[tuple[int, int]],
        labels: torch.Tensor | None = None,
    ) -> list[Prompt]:
        """Prompts from image coordinates to those of the network's input, arrays to tensors.

        Args:
            prompts: one per image.
            original_sizes: (height, width) of each image.
            labels: the images' own labels (B, S, S); where they are 255, so are the prompts' targets.
        """
        sizes = _as_sizes(original_sizes)
        per_image = [None] * len(sizes) if labels is None else labels
        return [self._transform_prompt(*item) for item in zip(prompts, sizes, per_image, strict=True)]

    def post_process_masks(
        self,
        logits: Sequence[torch.Tensor] | torch.Tensor,
        original_sizes: torch.Tensor | Sequence[tuple[int, int]],
        reshaped_input_sizes: torch.Tensor | Sequence[tuple[int, int]],
    ) -> list[torch.Tensor]:
        """Bring mask logits back to the size of their images.

        Args:
            logits: per image (n, h, w), or one tensor (B, n, h, w).
            original_sizes, reshaped_input_sizes: as returned by `preprocess`.

        Returns:
            Per image float logits (n, H, W), bilinear, no threshold (the boundary is at 0).
        """
        results, sizes = [], (_as_sizes(original_sizes), _as_sizes(reshaped_input_sizes))
        for low, original, reshaped in zip(logits, *sizes, strict=True):
            if len(low) == 0:
                results.append(low.new_zeros((0, *original), dtype=torch.float32))
                continue
            side = (self.image_size, self.image_size)
            full = F.interpolate(low[None].float(), side, mode="bilinear", align_corners=False)  # (1, n, S, S)
            full = full[..., : reshaped[0], : reshaped[1]]
            results.append(F.interpolate(full, original, mode="bilinear", align_corners=False)[0])
        return results

    def reshaped_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image of `size` inside the network's input."""
        if self.resize == "squash":
            return self.image_size, self.image_size
        scale = self.image_size * 1.0 / max(size)
        # The rounding of SamImageProcessor; a very thin image still keeps one pixel.
        height, width = (max(1, int(side * scale + 0.5)) for side in size)
        return height, width

    def _padded(self, image: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) or float32 (h, w, C) -> (C, S, S), normalised where `normalization` says how."""
        height, width, channels = image.shape
        stored = image if self.normalization is None else normalize(image, self.normalization)
        dtype = np.uint8 if self.normalization is None else np.float32
        values = np.zeros((channels, self.image_size, self.image_size), dtype)
        values[:, :height, :width] = stored.transpose(2, 0, 1)  # (C, h, w)
        return values

    def _nearest(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """For each row and column of the resized image, the row and column of the original under its centre."""
        return tuple(
            (2 * np.arange(new) + 1) * old // (2 * new)  # floor((i + 1/2) old / new), exactly
            for old, new in zip(size, self.reshaped_size(size))
        )

    def _resize_labels(self, masks: np.ndarray) -> np.ndarray:
        """(..., H, W) -> uint8 (..., S, S), nearest, 255 on the padding."""
        rows, columns = self._nearest(masks.shape[-2:])
        labels = np.full((*masks.shape[:-2], self.image_size, self.image_size), IGNORE, np.uint8)
        labels[..., : len(rows), : len(columns)] = masks[..., rows[:, None], columns]
        return labels

    def _resize_mask_prompts(self, masks: np.ndarray) -> np.ndarray:
        """bool (n, H, W) -> float32 (n, 4 grid, 4 grid) logits of +-10, -10 on the padding."""
        rows, columns = self._nearest(masks.shape[-2:])
        cells = centres(self.mask_size, self.image_size).numpy()
        rows, columns = rows[cells[cells < len(rows)]], columns[cells[cells < len(columns)]]
        logits = np.full((len(masks), self.mask_size, self.mask_size), -MASK_LOGIT, np.float32)
        logits[:, : len(rows), : len(columns)] += 2 * MASK_LOGIT * masks[:, rows[:, None], columns]
        return logits

    def _transform_prompt(self, prompt: Prompt, size: tuple[int, int], labels: torch.Tensor | None) -> Prompt:
        height, width = self.reshaped_size(size)
        scale = np.array([width / size[1], height / size[0]], np.float64)
        ready = dataclasses.replace(prompt)
        if prompt.boxes is not None:
            ready.boxes = _tensor(np.asarray(prompt.boxes) * np.tile(scale, 2), torch.float32)
        if prompt.points is not None:
            ready.points = _tensor(np.asarray(prompt.points) * scale, torch.float32)
            ready.point_labels = _tensor(prompt.point_labels, torch.int64)
        if prompt.masks is not None:
            masks = boolean_masks(checked_objects(prompt.masks, size))
            ready.masks = torch.from_numpy(self._resize_mask_prompts(masks))
        if prompt.targets is not None:
            targets = torch.from_numpy(self._resize_labels(checked_objects(prompt.targets, size)))
            ready.targets = targets if labels is None else targets.masked_fill_(labels == IGNORE, IGNORE)
        if prompt.labels is not None:
            ready.labels = _tensor(prompt.labels, torch.int64)
        if prompt.draws is not None:
            ready.draws = _tensor(prompt.draws, torch.float32)
        return ready

    def to_dict(self) -> dict[str, Any]:
        """The content of `preprocessor_config.json`.

        Where the pixel values are those of transformers' own processor, of SAM (`resize="pad"`) or of SAM 2 and 3
        ("squash"), the file says so in its terms: `SamProcessor`, `Sam2Processor` and the pipelines read it too. With
        a `normalization` or other resampling they cannot, and the type tells them.
        """
        usual = self.resample == "bilinear" and self.antialias
        kind = _TYPES.get((self.resize, self.arithmetic)) if usual and self.normalization is None else None
        config: dict[str, Any] = {
            "image_processor_type": kind or type(self).__name__,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            # Not "resize": that is a method of transformers' class, and extra keys become attributes there.
            "resize_mode": self.resize,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }
        if self.arithmetic != "pillow":
            config["arithmetic"] = self.arithmetic
        if not usual:  # `resample` as transformers spells it
            config |= {"resample": RESAMPLING[self.resample].value, "antialias": self.antialias}
        if self.normalization is not None:
            config |= {"channels": self.channels, "normalization": copy.deepcopy(self.normalization)}
        cutting = {"slices": self.slices, "tiling": self.tiling}
        config |= {name: dict(value) for name, value in cutting.items() if value is not None}
        if kind == "Sam2ImageProcessor":
            sides = {"size": self.image_size, "mask_size": self.mask_size}
            config |= {name: {"height": side, "width": side} for name, side in sides.items()}
        elif kind is not None:
            config |= {
                "size": {"longest_edge": self.image_size},
                "pad_size": {"height": self.image_size, "width": self.image_size},
                "mask_size": {"longest_edge": self.mask_size},
                "mask_pad_size": {"height": self.mask_size, "width": self.mask_size},
            }
        return config

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> SamAdaptProcessor:
        """Build from our own file or from that of a plain SAM (`size`, `pad_size`, …); `kwargs` override it.

        Raises:
            UserError: the file turns a step of SAM's preprocessing off, or holds no image size, or that of no square.
        """
        config = dict(image_processor_dict)
        unused = kwargs.pop("return_unused_kwargs", False)
        squashes = re.match(r"Sam[23]", str(config.get("image_processor_type"))) is not None
        for step in ("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb"):
            if config.get(step) is False and not (squashes and step == "do_pad"):
                fix = "set it to true, SAM's preprocessing needs it"
                raise UserError(f"{step} is false", key="preprocessor_config.json", fix=fix)
        if "image_size" not in config:
            size = config.get("size")
            config["image_size"] = _side(size) if isinstance(size, dict) else size
        if squashes:
            config = {"resize": "squash", "arithmetic": "torchvision"} | config
        if "resize_mode" in config:
            config["resize"] = config["resize_mode"]
        names = ("image_size", "patch_size", "resize", "image_mean", "image_std", "channels", "normalization")
        names += ("resample", "antialias", "arithmetic", "slices", "tiling")
        chosen = {name: config[name] for name in names if config.get(name) is not None}
        if "image_size" not in chosen:
            raise UserError(
                "neither image_size nor size.longest_edge nor size.height is given", key="preprocessor_config.json"
            )
        chosen |= {name: kwargs.pop(name) for name in names if name in kwargs}
        processor = cls(**chosen)
        return (processor, kwargs) if unused else processor


# transformers' processors of equal pixel values.
_TYPES = {("pad", "pillow"): "SamImageProcessor", ("squash", "torchvision"): "Sam2ImageProcessor"}


def _side(size: dict[str, int]) -> int | None:
    """Side of the square that transformers' `size` describes; None where it describes none."""
    height, width = size.get("height"), size.get("width")
    if height != width:
        raise UserError(f"size is {width}x{height}", key="preprocessor_config.json", fix="only squares are supported")
    return size.get("longest_edge", height)


def _as_sizes(sizes: torch.Tensor | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in sizes]


def _tensor(values: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values)).to(dtype)
