"""Losses of one channel against float64 references written from the publications, and where those break."""

import pytest
import torch
from torch.nn import functional as F

from hf_sam_adapt import segmentation_loss
from hf_sam_adapt.errors import UserError


def reference_bce(z, g):
    p = torch.sigmoid(z)
    return -(g * p.log() + (1 - g) * (1 - p).log()).mean()


def reference_bbce(z, g):
    positive, negative = g.sum() + 1e-10, (1 - g).sum()
    weight = negative / positive
    p = torch.sigmoid(z)
    bce = -(weight * g * p.log() + (1 - g) * (1 - p).log()).mean()
    return positive / (positive + negative) * bce


def reference_iou(z, g):
    p = torch.sigmoid(z)
    terms = [1 - (pi * gi).sum() / (pi.sum() + gi.sum() - (pi * gi).sum()) for pi, gi in zip(p, g)]
    return reference_bce(z, g) + sum(terms) / len(terms)


def reference_dice(z, g):
    p = torch.sigmoid(z)
    return sum(1 - 2 * (pi * gi).sum() / (pi.sum() + gi.sum()) for pi, gi in zip(p, g)) / len(p)


def reference_structure(z, g, weighted_bce=True):
    p, total = torch.sigmoid(z), 0
    for pi, gi in zip(p, g):
        height, width = gi.shape
        local = torch.zeros_like(gi)
        for y in range(height):
            for x in range(width):
                local[y, x] = gi[max(0, y - 15) : y + 16, max(0, x - 15) : x + 16].sum() / 31**2
        w = 1 + 5 * (local - gi).abs()
        bce = -(gi * pi.log() + (1 - gi) * (1 - pi).log())
        inter, union = (w * pi * gi).sum(), (w * (pi + gi)).sum()
        bce = (w * bce).sum() / w.sum() if weighted_bce else bce.mean()
        total = total + bce + 1 - (inter + 1) / (union - inter + 1)
    return total / len(z)


REFERENCES = {
    "bce": reference_bce,
    "bbce": reference_bbce,
    "iou": reference_iou,
    "dice": reference_dice,
    "structure": reference_structure,
    "structure_unweighted": lambda z, g: reference_structure(z, g, weighted_bce=False),
}


def random_case(seed, size=(40, 56), n=3):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, 1, *size, generator=generator)
    labels = (torch.rand(n, *size, generator=generator) < torch.rand(n, 1, 1, generator=generator)).long()
    return logits, labels


@pytest.mark.parametrize("loss", REFERENCES)
def test_value_and_gradient_equal_the_reference(loss):
    logits, labels = random_case(seed=1)
    logits.requires_grad_()
    ours = segmentation_loss(logits, labels, loss)
    (gradient,) = torch.autograd.grad(ours, logits)

    exact = logits.detach().double().requires_grad_()
    theirs = REFERENCES[loss](exact[:, 0], labels.double())
    (expected,) = torch.autograd.grad(theirs, exact)
    assert ours.dtype == torch.float32
    assert abs(ours.item() - theirs.item()) < 1e-6
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_bbce_is_the_published_identity():
    logits, labels = random_case(seed=2)
    z, g = logits[:, 0].double(), labels.double()
    positive, negative, total = g.sum(), (1 - g).sum(), g.numel()
    identity = -(negative / total * g * F.logsigmoid(z) + positive / total * (1 - g) * F.logsigmoid(-z)).mean()
    assert abs(segmentation_loss(logits, labels, "bbce").item() - identity.item()) < 1e-6


def test_a_sum_is_the_sum_of_its_terms():
    logits, labels = random_case(seed=3)
    parts = sum(segmentation_loss(logits, labels, term) for term in ("bce", "dice", "structure"))
    assert torch.allclose(segmentation_loss(logits, labels, "bce + dice+structure"), parts)


@pytest.mark.parametrize("loss", REFERENCES)
def test_logits_are_upsampled_to_the_labels(loss):
    logits, _ = random_case(seed=4, size=(16, 16))
    _, labels = random_case(seed=5, size=(64, 64))
    full = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(segmentation_loss(logits, labels, loss), segmentation_loss(full, labels, loss))


@pytest.mark.parametrize("loss", REFERENCES)
def test_ignored_pixels_have_no_influence_and_no_gradient(loss):
    logits, labels = random_case(seed=6)
    ignored = torch.rand(labels.shape) < 0.3
    labels = labels.masked_fill(ignored, 255)
    changed = torch.where(ignored[:, None], 50 * torch.randn_like(logits), logits).requires_grad_()
    value = segmentation_loss(changed, labels, loss)
    (gradient,) = torch.autograd.grad(value, changed)
    assert torch.allclose(value, segmentation_loss(logits, labels, loss), rtol=1e-6)
    assert gradient[ignored[:, None]].abs().max() == 0
    assert gradient[~ignored[:, None]].abs().min() > 0


@pytest.mark.parametrize("loss", ["bce", "bbce", "iou", "dice"])
def test_cutting_off_ignored_columns_changes_nothing(loss):
    logits, labels = random_case(seed=7)
    padded_labels = F.pad(labels, (0, 24), value=255)
    padded_logits = F.pad(logits, (0, 24), value=7.0)
    assert torch.allclose(
        segmentation_loss(padded_logits, padded_labels, loss), segmentation_loss(logits, labels, loss), rtol=1e-5
    )


@pytest.mark.parametrize("loss", REFERENCES)
@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["usual", "saturated"])
@pytest.mark.parametrize("value", [0, 1, 255], ids=["empty", "full", "ignored"])
def test_finite_on_degenerate_masks(loss, scale, value):
    logits = (scale * torch.randn(2, 1, 32, 32)).requires_grad_()
    labels = torch.full((2, 32, 32), value)
    result = segmentation_loss(logits, labels, loss)
    (gradient,) = torch.autograd.grad(result, logits)
    assert torch.isfinite(result) and torch.isfinite(gradient).all()
    if value == 255:
        assert result == 0 and gradient.abs().max() == 0


@pytest.mark.parametrize("loss", ["bce", "iou", "dice", "structure", "structure_unweighted"])
def test_an_empty_mask_pushes_the_logits_down(loss):
    logits = torch.zeros(1, 1, 32, 32, requires_grad=True)
    segmentation_loss(logits, torch.zeros(1, 32, 32, dtype=torch.long), loss).backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("loss", ["bce", "iou", "dice", "structure", "structure_unweighted"])
def test_batch_loss_is_the_mean_of_its_images_or_their_weighted_sum(loss):
    logits, labels = random_case(seed=8, n=4)
    labels[1] = 0
    single = torch.stack([segmentation_loss(logits[i : i + 1], labels[i : i + 1], loss) for i in range(4)])
    weights = torch.tensor([0.5, 0.0, 0.25, 0.125])
    assert torch.allclose(segmentation_loss(logits, labels, loss), single.mean(), rtol=1e-5)
    assert torch.allclose(segmentation_loss(logits, labels, loss, weights), (single * weights).sum(), rtol=1e-5)


def test_bbce_does_not_count_images_without_weight():
    logits, labels = random_case(seed=9, n=2)
    weighted = segmentation_loss(logits, labels, "bbce", torch.tensor([1.0, 0.0]))
    assert torch.allclose(weighted, segmentation_loss(logits[:1], labels[:1], "bbce"), rtol=1e-6)


def test_half_precision_logits_are_computed_in_fp32():
    logits, labels = random_case(seed=10)
    half = logits.bfloat16()
    assert torch.equal(segmentation_loss(half, labels), segmentation_loss(half.float(), labels))


def test_without_a_name_it_is_the_structure_loss():
    logits, labels = random_case(seed=13)
    assert torch.equal(segmentation_loss(logits, labels), segmentation_loss(logits, labels, "structure"))


def test_unknown_term_names_the_known_ones():
    logits, labels = random_case(seed=11)
    with pytest.raises(UserError, match=r"'fokal' in 'bce\+fokal'.*structure.*focal"):
        segmentation_loss(logits, labels, "bce+fokal")


@pytest.mark.parametrize("term", ["ce", "ce_official", "focal"])
def test_losses_of_classes_are_refused(term):
    logits, labels = random_case(seed=14)
    with pytest.raises(UserError, match=f"'{term}' is not a loss for binary masks; use one of bce, bbce, .*structure"):
        segmentation_loss(logits, labels, f"dice+{term}")


def test_class_weights_are_refused():
    logits, labels = random_case(seed=15)
    with pytest.raises(UserError, match="class_weights: 1 values for 1 channels"):
        segmentation_loss(logits, labels, class_weights=torch.ones(1))


def test_shapes_that_do_not_fit_raise():
    logits, labels = random_case(seed=12)
    with pytest.raises(ValueError, match="expected logits"):
        segmentation_loss(logits[:, 0], labels)
    with pytest.raises(ValueError, match="expected logits"):
        segmentation_loss(logits[:1], labels)
