"""The loss at sampled points, beside numbers of the official implementation and a plain reference."""

import math

import pytest
import torch

from hf_sam_adapt import segmentation_loss
from hf_sam_adapt.losses.points import NUM_POINTS, point_losses, sample_points, uncertain_points


def half_ones(n=1, size=1024):
    target = torch.zeros(n, size, size)
    target[:, :, : size // 2] = 1
    return target


def test_undecided_logits():
    """Cross-entropy ln 2; Dice by the number of positive points, about .5."""
    logits, target = torch.zeros(3, 256, 256), half_ones(3)
    generator = torch.Generator().manual_seed(0)
    points = uncertain_points(logits, generator)
    positive = sample_points(target, points).sum(1)
    generator.manual_seed(0)
    bce, dice = point_losses(logits, target, generator=generator)
    assert bce == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert torch.allclose(dice, 1 - (positive + 1) / (NUM_POINTS / 2 + positive + 1), atol=1e-5)
    assert dice.mean().item() == pytest.approx(0.5024, abs=5e-3)


def test_perfect_logits():
    """What is left comes from the points between pixels: cross-entropy about .0105, Dice .0017."""
    logits = torch.where(torch.arange(256) < 128, 20.0, -20.0).expand(4, 256, 256)
    bce, dice = point_losses(logits, half_ones(4), generator=torch.Generator().manual_seed(0))
    assert bce.mean().item() == pytest.approx(0.0105, abs=2e-3)
    assert dice.mean().item() == pytest.approx(0.0017, abs=4e-4)


def test_three_quarters_of_the_points_are_uncertain():
    generator = torch.Generator().manual_seed(3)
    logits = torch.linspace(-8, 8, 64).expand(2, 64, 64)
    points = uncertain_points(logits, generator)
    assert points.shape == (2, NUM_POINTS, 2) and 0 <= points.min() and points.max() <= 1
    chosen, uniform = points[:, : NUM_POINTS * 3 // 4], points[:, NUM_POINTS * 3 // 4 :]
    # A quarter of the candidates is chosen: those with |x - 1/2| < 1/8, and at the edges, where logits blend into 0.
    middle = (chosen[..., 0] - 0.5).abs()
    assert ((middle < 0.13) | (points[:, : NUM_POINTS * 3 // 4] - 0.5).abs().amax(-1).gt(0.49)).float().mean() > 0.99
    assert uniform.mean(dim=1).sub(0.5).abs().max() < 0.05 and (uniform - 0.5).abs().max() > 0.45


def test_points_lie_where_grid_sample_says():
    """Bilinear by hand, away from the edges."""
    generator = torch.Generator().manual_seed(1)
    maps, points = torch.randn(2, 10, 14, generator=generator), torch.rand(2, 50, 2, generator=generator) * 0.8 + 0.1
    x, y = points[..., 0] * 14 - 0.5, points[..., 1] * 10 - 0.5
    left, top = x.floor().long(), y.floor().long()
    rows = torch.arange(2)[:, None]
    expected = sum(
        maps[rows, top + dy, left + dx] * (1 - (x - left - dx).abs()) * (1 - (y - top - dy).abs())
        for dx in (0, 1)
        for dy in (0, 1)
    )
    assert torch.allclose(sample_points(maps, points), expected, atol=1e-5)


def test_as_a_loss_by_name():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 64, 64, generator=generator).requires_grad_()
    labels = torch.randint(0, 2, (2, 128, 128), generator=generator)
    value = segmentation_loss(logits, labels, "points", generator=generator.manual_seed(7))
    bce, dice = point_losses(logits[:, 0], (labels == 1).float(), generator=generator.manual_seed(7))
    assert torch.allclose(value, (bce + dice).mean())
    assert torch.equal(value, segmentation_loss(logits, labels, "points", generator=generator.manual_seed(7)))
    assert not torch.equal(value, segmentation_loss(logits, labels, "points", generator=generator.manual_seed(8)))
    both = segmentation_loss(logits, labels, "points+bce", generator=generator.manual_seed(7))
    assert torch.allclose(both, value + segmentation_loss(logits, labels, "bce"))
    weights = torch.tensor([1.0, 0.0])
    value = segmentation_loss(logits, labels, "points", weights, generator=generator.manual_seed(7))
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0


def test_ignored_pixels_have_no_influence():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 64, 64, generator=generator)
    labels = torch.randint(0, 2, (1, 64, 64), generator=generator)
    labels[:, :, 20:] = 255
    other = labels.clone()
    values = [
        segmentation_loss(logits, one, "points", generator=generator.manual_seed(1)).item() for one in (labels, other)
    ]
    # The labels behind 255 are gone: what they were cannot matter, nor can the logits' sign there.
    assert values[0] == values[1]
    empty = torch.full_like(labels, 255)
    assert segmentation_loss(logits, empty, "points", generator=generator).item() == pytest.approx(0, abs=1e-6)
