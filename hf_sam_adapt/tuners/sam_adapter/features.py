"""Guidance features for prompts: maps computed from the network input, by name."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...errors import UserError


def frequency_component(
    pixel_values: torch.Tensor, rate: float = 0.25, keep: str = "high", absolute: bool = True
) -> torch.Tensor:
    """High- or low-frequency part of an image (SAM-Adapter §3, CWSAM's low-pass), per channel.

    A centred square of the spectrum, `2l x 2l` with `l = floor(sqrt(H * W * rate) / 2)` whatever the aspect ratio, is
    removed (`"high"`) or kept (`"low"`). The published square holds the frequencies -l … l-1, so its inverse transform
    has an imaginary part that the authors drop. That equals a real transform with the symmetrised mask
    `(M(k) + M(-k)) / 2`, which is what runs here: half the work, no complex intermediate.

    Args:
        pixel_values: network input (B, C, H, W), any floating dtype; computed in fp32 without gradient.
        rate: share of the spectrum's area in the square, 0 < rate <= 1.
        keep: `"high"` or `"low"`.
        absolute: take the absolute value, as the publications do.

    Returns:
        fp32 tensor (B, C, H, W).
    """
    height, width = pixel_values.shape[-2:]
    if torch.compiler.is_exporting():
        component = _low_pass_by_products(pixel_values.float(), rate)
        component = pixel_values.float() - component if keep == "high" else component
        return component.abs() if absolute else component
    with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
        mask = low_pass_mask(height, width, rate, pixel_values.device)
        if keep == "high":
            mask = 1 - mask
        spectrum = torch.fft.rfft2(pixel_values.float()) * mask
        component = torch.fft.irfft2(spectrum, s=(height, width))
        return component.abs() if absolute else component


def _low_pass_by_products(pixel_values: torch.Tensor, rate: float) -> torch.Tensor:
    """The low frequencies of fp32 (B, C, H, W) without a Fourier transform, which few runtimes of graphs have.

    A square band is a filter R X C^T, with R = F^-1 diag(band) F of the rows and C of the columns; the mirrored band
    has the conjugates. Half the sum of both is Re(R) X Re(C)^T - Im(R) X Im(C)^T: the same function, in real products.
    """
    height, width = pixel_values.shape[-2:]
    half = int((height * width * rate) ** 0.5 // 2)
    (rows_real, rows_imag), (columns_real, columns_imag) = (_band_filter(size, half) for size in (height, width))
    real = rows_real.to(pixel_values.device) @ pixel_values @ columns_real.T.to(pixel_values.device)
    return real - rows_imag.to(pixel_values.device) @ pixel_values @ columns_imag.T.to(pixel_values.device)


def _band_filter(size: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and imaginary part, fp32 (size, size), of the filter that keeps the frequencies -half … half-1."""
    frequencies = np.arange(max(-half, -(size // 2)), min(half, size - size // 2))
    places = np.arange(size)
    # Entry (m, n) depends on m - n alone; modulo the size before the cosine, so that no large angle is rounded.
    angles = 2 * np.pi / size * (frequencies[:, None] * places % size)
    kernel = (np.cos(angles) + 1j * np.sin(angles)).sum(0) / size
    matrix = kernel[(places[:, None] - places) % size]
    return torch.from_numpy(matrix.real.astype(np.float32)), torch.from_numpy(matrix.imag.astype(np.float32))


def low_pass_mask(height: int, width: int, rate: float, device: torch.device | None = None) -> torch.Tensor:
    """Symmetrised square mask over the half-plane of `rfft2`: fp32 (H, W // 2 + 1), 1 = inside the square."""
    half = int((height * width * rate) ** 0.5 // 2)
    rows = _in_band(height, half, device)
    columns = _in_band(width, half, device)
    square = rows[0][:, None] * columns[0][None, :]
    mirrored = rows[1][:, None] * columns[1][None, :]
    return ((square + mirrored) / 2)[:, : width // 2 + 1]


def _in_band(size: int, half: int, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
    """1 where the frequency k (in the order of `fft`) and its mirror -k lie in -half … half-1; fp32 (size,) each."""
    position = torch.arange(size, device=device)
    index = (position + size // 2) % size  # place of bin i after fftshift
    low, high = max(size // 2 - half, 0), size // 2 + half
    band = ((index >= low) & (index < high)).float()
    return band, band[(-position) % size]


@dataclass(frozen=True)
class Feature:
    """A registered guidance feature: `compute` maps (B, C, H, W) to (B, channels, H, W)."""

    compute: Callable[[torch.Tensor], torch.Tensor]
    channels: int


_REGISTERED: dict[str, Feature] = {}
BUILT_IN = ("embedding", "high", "low")


def register_feature(name: str, compute: Callable[[torch.Tensor], torch.Tensor], channels: int = 3) -> None:
    """Make a guidance feature available under `SamAdapterConfig(features=[…, name])`.

    The adapter stores the name only: register it before loading, too.

    Args:
        name: letters, digits and underscores; not one of the built-in names.
        compute: from the network input (B, C, H, W), fp32, to a map (B, channels, H, W); called without gradient.
        channels: channels of the map.

    Raises:
        UserError: if the name is taken or not usable as a part of a state-dict key.
    """
    taken = name in BUILT_IN or name in _REGISTERED or hasattr(nn.ModuleDict, name)
    if taken or not name.isidentifier():
        raise UserError(f"feature name {name!r} is taken or not an identifier", fix=f"built in: {', '.join(BUILT_IN)}")
    _REGISTERED[name] = Feature(compute, channels)


def get_feature(name: str) -> Feature:
    """Return a feature registered by the user.

    Raises:
        UserError: if nobody registered it in this process.
    """
    if name not in _REGISTERED:
        known = ", ".join((*BUILT_IN, *_REGISTERED))
        raise UserError(
            f"guidance feature {name!r} is unknown (known: {known})",
            fix=f"call hf_sam_adapt.register_feature({name!r}, …) before the adapter is created or loaded",
        )
    return _REGISTERED[name]
