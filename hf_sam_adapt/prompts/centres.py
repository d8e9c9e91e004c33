"""Where the cells of a decoder's mask lie in the network's input: 4 pixels a side in SAM, 3.5 in SAM 3."""

import torch


def centres(cells: int, side: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """int64 (cells,): of `side` pixels in a row those under the cells' centres, floor((i + 1/2) side / cells)."""
    return (2 * torch.arange(cells, device=device) + 1) * side // (2 * cells)


def at_centres(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(..., H, W) -> (..., height, width), the values under the cells' centres."""
    rows = centres(height, values.shape[-2], values.device)
    return values[..., rows[:, None], centres(width, values.shape[-1], values.device)]
