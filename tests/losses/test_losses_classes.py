"""Losses of K channels against float64 references written pixel by pixel, and their behaviour where those break."""

import pytest
import torch
from torch.nn import functional as F

from hf_sam_adapt import segmentation_loss
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.names import CLASS_LOSSES, parse_loss


K = 5
FUSAR_WEIGHTS = (1.5, 1.0, 0.5, 1.9, 0.1)


def pixels_of(logits, labels):
    """(softmax probabilities, class) of each labelled pixel of one image."""
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] != 255:
                yield torch.softmax(logits[:, y, x], 0), int(labels[y, x])


def reference_ce(logits, labels, w, gamma=0):
    terms = [(w[k], (1 - p[k]) ** gamma * -p[k].log()) for p, k in pixels_of(logits, labels)]
    return sum(weight * term for weight, term in terms) / sum(weight for weight, _ in terms)


def reference_ce_official(logits, labels, w):
    """The code's loss: class probabilities as targets, all 0 for unknown pixels, a mean over all the pixels."""
    one_hot = torch.stack([(labels == k) for k in range(len(logits))]).to(logits.dtype)
    return F.cross_entropy(logits[None], one_hot[None], weight=torch.tensor(w, dtype=logits.dtype))


def reference_dice(logits, labels, w):
    pixels = list(pixels_of(logits, labels))
    terms = []
    for k in sorted({k for _, k in pixels}):
        both = sum(p[k] for p, true in pixels if true == k)
        areas = sum(p[k] for p, _ in pixels) + sum(true == k for _, true in pixels)
        terms.append(1 - 2 * both / areas)
    return sum(terms) / len(terms)


REFERENCES = {
    "ce": reference_ce,
    "ce_official": reference_ce_official,
    "dice": reference_dice,
    "focal": lambda logits, labels, w: reference_ce(logits, labels, w, gamma=2),
}


def random_case(seed, size=(12, 17), n=3, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, K, *size, generator=generator)
    labels = torch.randint(0, K, (n, *size), generator=generator)
    labels[0][labels[0] == 2] = 3  # class 2 is absent from the first image
    return logits, labels.masked_fill(torch.rand(labels.shape, generator=generator) < ignored, 255)


@pytest.mark.parametrize("weights", [None, FUSAR_WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_value_and_gradient_equal_the_reference(loss, weights):
    logits, labels = random_case(seed=1)
    logits.requires_grad_()
    ours = segmentation_loss(logits, labels, loss, class_weights=weights and torch.tensor(weights))
    (gradient,) = torch.autograd.grad(ours, logits)

    exact = logits.detach().double().requires_grad_()
    images = [REFERENCES[loss](z, y, weights or (1.0,) * K) for z, y in zip(exact, labels)]
    theirs = sum(images) / len(images)
    (expected,) = torch.autograd.grad(theirs, exact)
    assert ours.dtype == torch.float32
    assert abs(ours.item() - theirs.item()) < 1e-6
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_two_normalisations_differ_by_the_mean_weight_of_a_pixel():
    """The published example: with weights that make the pixels' mean weight 1/5 the quotient is 5."""
    logits, _ = random_case(seed=2, n=1)
    labels = torch.full((1, *logits.shape[-2:]), 4)
    w = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.2])
    by_weight = segmentation_loss(logits, labels, "ce", class_weights=w)
    by_pixels = segmentation_loss(logits, labels, "ce_official", class_weights=w)
    assert (by_weight / by_pixels).item() == pytest.approx(5, rel=1e-6)


def test_only_the_official_normalisation_is_diluted_by_ignored_pixels():
    logits, labels = random_case(seed=3, ignored=0)
    padded_logits, padded_labels = F.pad(logits, (0, 34), value=7.0), F.pad(labels, (0, 34), value=255)
    for loss, factor in {"ce": 1, "dice": 1, "focal": 1, "ce_official": 3}.items():
        padded = segmentation_loss(padded_logits, padded_labels, loss)
        assert torch.allclose(factor * padded, segmentation_loss(logits, labels, loss), rtol=1e-5)


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_logits_are_upsampled_to_the_labels(loss):
    logits, _ = random_case(seed=4, size=(8, 8))
    _, labels = random_case(seed=5, size=(32, 32))
    full = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(segmentation_loss(logits, labels, loss), segmentation_loss(full, labels, loss))


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_ignored_pixels_have_no_influence_and_no_gradient(loss):
    logits, labels = random_case(seed=6)
    ignored = (labels == 255)[:, None]
    changed = torch.where(ignored, 50 * torch.randn_like(logits), logits).requires_grad_()
    value = segmentation_loss(changed, labels, loss)
    (gradient,) = torch.autograd.grad(value, changed)
    assert torch.allclose(value, segmentation_loss(logits, labels, loss), rtol=1e-6)
    assert gradient[ignored.expand_as(gradient)].abs().max() == 0
    assert gradient.abs().amax(1, keepdim=True)[~ignored].min() > 0


@pytest.mark.parametrize("loss", [*CLASS_LOSSES, "ce+dice+focal"])
@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["usual", "saturated"])
@pytest.mark.parametrize("value", [0, K - 1, 255], ids=["first class", "last class", "ignored"])
def test_finite_on_degenerate_masks(loss, scale, value):
    logits = (scale * torch.randn(2, K, 16, 16)).bfloat16().requires_grad_()
    labels = torch.full((2, 16, 16), value)
    result = segmentation_loss(logits, labels, loss, class_weights=torch.tensor(FUSAR_WEIGHTS))
    (gradient,) = torch.autograd.grad(result, logits)
    assert torch.isfinite(result) and torch.isfinite(gradient).all()
    if value == 255:
        assert result == 0 and gradient.abs().max() == 0


def test_focal_is_finite_where_the_prediction_is_certain():
    logits = torch.zeros(1, K, 4, 4)
    logits[:, 1] = 200
    logits.requires_grad_()
    labels = torch.tensor([[[1, 1, 0, 0]] * 4])
    value = segmentation_loss(logits, labels, "focal")
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == pytest.approx(100)
    assert torch.isfinite(gradient).all() and gradient[0, 0, :, 2:].max() < 0


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_pixels_of_a_class_of_weight_zero_count_like_ignored_ones(loss):
    logits, labels = random_case(seed=7)
    without = torch.tensor([1.5, 1.0, 0.0, 1.9, 0.1])
    value = segmentation_loss(logits, labels, loss, class_weights=without)
    ignoring = segmentation_loss(logits, labels.masked_fill(labels == 2, 255), loss, class_weights=without)
    assert torch.equal(value, ignoring) and value > 0
    assert segmentation_loss(logits, labels.masked_fill(labels != 2, 255), loss, class_weights=without) == 0


def test_dice_of_a_class_counts_its_false_positives_only_where_it_occurs():
    logits = torch.full((1, 3, 1, 4), -50.0)
    logits[0, [0, 0, 1, 2], 0, [0, 1, 2, 3]] = 50  # predicted 0 0 1 2
    labels = torch.tensor([[[0, 1, 1, 1]]])
    expected = ((1 - 2 / 3) + (1 - 2 / 4)) / 2  # classes 0 and 1; class 2 costs through class 1
    assert segmentation_loss(logits, labels, "dice").item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_batch_loss_is_the_mean_of_its_images_or_their_weighted_sum(loss):
    logits, labels = random_case(seed=8, n=4)
    labels[1] = 255
    single = torch.stack([segmentation_loss(logits[i : i + 1], labels[i : i + 1], loss) for i in range(4)])
    weights = torch.tensor([0.5, 0.0, 0.25, 0.125])
    assert torch.allclose(segmentation_loss(logits, labels, loss), single.mean(), rtol=1e-5)
    assert torch.allclose(segmentation_loss(logits, labels, loss, weights), (single * weights).sum(), rtol=1e-5)


def test_a_sum_is_the_sum_of_its_terms_and_the_default_is_one():
    logits, labels = random_case(seed=9)
    ce, dice, focal = (segmentation_loss(logits, labels, term) for term in ("ce", "dice", "focal"))
    assert torch.allclose(segmentation_loss(logits, labels, "ce + dice+focal"), ce + dice + focal)
    assert torch.allclose(segmentation_loss(logits, labels), ce + dice)


def test_half_precision_logits_are_computed_in_fp32():
    logits, labels = random_case(seed=10)
    half = logits.bfloat16()
    assert torch.equal(segmentation_loss(half, labels), segmentation_loss(half.float(), labels))


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_descent_finds_the_labels(loss):
    _, labels = random_case(seed=11)
    logits = torch.zeros(3, K, *labels.shape[-2:], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        segmentation_loss(logits, labels, loss).backward()
        optimizer.step()
    known = labels != 255
    assert (logits.argmax(1) == labels)[known].all()


@pytest.mark.parametrize("term", ["bce", "bbce", "iou", "structure", "structure_unweighted"])
def test_binary_losses_are_refused(term):
    logits, labels = random_case(seed=12)
    with pytest.raises(
        UserError, match=f"'{term}' is not a loss for masks of 5 classes; use one of ce, ce_official, "
    ):
        segmentation_loss(logits, labels, f"dice+{term}")


def test_class_weights_of_another_length_are_refused():
    logits, labels = random_case(seed=13)
    with pytest.raises(UserError, match="class_weights: 4 values for 5 channels"):
        segmentation_loss(logits, labels, class_weights=torch.ones(4))


def test_a_label_that_is_no_class_raises():
    logits, labels = random_case(seed=14)
    labels[1, 2, 3] = K
    for loss in CLASS_LOSSES:
        with pytest.raises(UserError, match=f"labels: value {K}"):
            segmentation_loss(logits, labels, loss)


def test_parse_loss_before_and_after_the_number_of_channels_is_known():
    for loss in ("bce+dice", "ce+dice", "focal", "dice"):
        assert parse_loss(loss) == loss.split("+")
    assert parse_loss("dice", 1) == parse_loss("dice", 7) == ["dice"]
    with pytest.raises(UserError, match=r"'bce\+focal' mixes"):
        parse_loss("bce+focal")
