"""How an image becomes one of another size."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import UserError


RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resampling_name(resample: str | int) -> str:
    """ "bilinear" or "bicubic", from the name or from Pillow's number, which transformers' files hold.

    Raises:
        UserError: any other.
    """
    for name, number in RESAMPLING.items():
        if resample in (name, number.value):
            return name
    raise UserError(f"{resample!r} is unknown", key="resample", fix=f"choose from {', '.join(RESAMPLING)}")


def resized(
    image: np.ndarray,
    size: tuple[int, int],
    resample: str = "bilinear",
    antialias: bool = True,
    arithmetic: str = "pillow",
) -> np.ndarray:
    """uint8 (H, W, 3) or float32 (H, W, C) -> the same at `size`, (height, width).

    Args:
        resample: "bilinear" or "bicubic".
        antialias: what Pillow does; False reads the pixels around a place alone, whatever the scale, and rounds uint8
            down, as CoSAM's code does.
        arithmetic: "torchvision" resizes uint8 by torch's kernel, which torchvision calls, and which rounds a few
            pixels in a thousand to the other side.
    """
    if image.shape[:2] == size:
        return image
    if not antialias:
        maps = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]  # (1, C, H, W)
        values = F.interpolate(maps, size, mode=resample, align_corners=False)[0].permute(1, 2, 0).numpy()
        return values if image.dtype != np.uint8 else values.clip(0, 255).astype(np.uint8)
    if arithmetic == "torchvision" and image.dtype == np.uint8:
        maps = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]  # (1, 3, H, W)
        sized = F.interpolate(maps, size, mode=resample, align_corners=False, antialias=True)[0]
        return sized.permute(1, 2, 0).numpy()
    width_first, method = (size[1], size[0]), RESAMPLING[resample]
    if image.dtype != np.uint8:
        channels = (np.ascontiguousarray(image[..., channel]) for channel in range(image.shape[2]))
        return np.stack([np.asarray(Image.fromarray(part).resize(width_first, method)) for part in channels], axis=2)
    return np.asarray(Image.fromarray(image).resize(width_first, method))
