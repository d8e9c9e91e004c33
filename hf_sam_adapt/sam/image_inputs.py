"""Images, masks and objects in any form that Python code has them in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.channels import load_image
from ..data.images import read_mask_file
from ..errors import UserError


ImageLike = Image.Image | np.ndarray | torch.Tensor


def as_list(images: Any) -> list:
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def matched(items: Any, sizes: list[tuple[int, int]], name: str) -> list | None:
    if items is None:
        return None
    if isinstance(items, (np.ndarray, torch.Tensor)) and items.ndim == 3 and len(items) == len(sizes):
        items = list(items)
    items = as_list(items)
    if len(items) != len(sizes):
        raise UserError(f"{len(items)} given for {len(sizes)} images", where=name, fix="give one per image")
    return items


def image_array(image: ImageLike, channels: int | None) -> np.ndarray:
    """Any supported image -> uint8 (H, W, 3), or with `channels` float32 (H, W, C)."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        counts = (1, 3, 4) if channels is None else (channels,)
        if image.ndim == 3 and image.shape[0] in counts and image.shape[2] not in counts:
            image = image.permute(1, 2, 0)  # (C, H, W) -> (H, W, C)
        image = image.numpy()
    elif isinstance(image, list):
        image = np.asarray(image)
    return load_image(image, channels)


def checked_mask(mask: ImageLike, size: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """Any supported mask as stored, (H, W) of the image's size, and whether that was lossy."""
    values, lossy = read_mask_file(mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask)
    if values.shape != size:
        raise UserError(f"mask of {values.shape[1]}x{values.shape[0]} for an image of {size[1]}x{size[0]} pixels")
    return values, lossy


def checked_objects(objects: np.ndarray | torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    objects = np.asarray(objects)
    if objects.shape[-2:] != size:
        height, width = objects.shape[-2:]
        raise UserError(f"prompt mask of {width}x{height} for an image of {size[1]}x{size[0]} pixels")
    return objects
