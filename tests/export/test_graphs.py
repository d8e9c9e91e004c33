"""The parts of graphs that stand for something else in PyTorch, before anything is exported."""

import numpy as np
import pytest
import torch
from reference_sam import complex_frequency_component
from sams import random_sam

from hf_sam_adapt import SamAdaptProcessor
from hf_sam_adapt.convert.export.check import resized_for_annotators
from hf_sam_adapt.convert.export.graphs import Decoder, Normalise
from hf_sam_adapt.tuners.sam_adapter import features


@pytest.mark.parametrize("keep", ["high", "low"])
@pytest.mark.parametrize("size", [(64, 64), (30, 47), (33, 128)])
@pytest.mark.parametrize("rate", [0.05, 0.25, 0.7, 1.0])
def test_frequencies_by_products_are_those_of_the_transform(keep, size, rate, monkeypatch):
    images = torch.randn(2, 3, *size)
    transformed = features.frequency_component(images, rate, keep)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found = features.frequency_component(images, rate, keep)
    assert (found - transformed).abs().max() < 5e-6
    if (size[0] * size[1] * rate) ** 0.5 <= min(size):  # the official slices fail where the square leaves the spectrum
        assert (found - complex_frequency_component(images, rate, keep)).abs().max() < 5e-6


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize("size", [(48, 64), (211, 90), (64, 64), (7, 300), (1, 1)])
def test_masks_come_back_to_the_size_of_the_image(resize, size):
    processor = SamAdaptProcessor(64, 8, resize=resize)
    decoder, low = Decoder(random_sam(), processor), torch.randn(3, 1, 32, 32)
    rows, columns = (decoder._resampling(torch.tensor(size).float(), axis) for axis in (0, 1))
    expected = torch.stack(processor.post_process_masks(low, [size] * 3, [processor.reshaped_size(size)] * 3))
    assert (rows @ low @ columns.T - expected).abs().max() < 1e-5


@pytest.mark.parametrize("labels", [[1, 0, -1], [2, 3, 1], [2, 3, -1]])
@pytest.mark.parametrize("with_mask", [False, True])
@torch.no_grad()
def test_prompts_are_embedded_as_by_the_model(labels, with_mask):
    sam, processor = random_sam(), SamAdaptProcessor(64, 8)
    images, mask = torch.randn(2, 3, 64, 64), torch.randn(2, 1, 32, 32)
    points, labels = torch.rand(2, 3, 2) * 64, torch.tensor([labels] * 2)
    boxed = bool((labels == 2).any())
    prompts = {"input_masks": mask} if with_mask else {}
    if boxed:
        prompts |= {"input_boxes": points[:, :2].reshape(2, 1, 4)}
    if not boxed:  # transformers adds the padding itself, and takes one image's mask for all points
        prompts |= {"input_points": points[:, None, :2], "input_labels": labels[:, None, :2]}
    elif 1 in labels:
        prompts |= {"input_points": points[:, None, 2:], "input_labels": labels[:, None, 2:]}
    expected = sam(pixel_values=images, multimask_output=False, **prompts)
    maps = sam.vision_encoder(images).last_hidden_state
    if boxed and 1 in labels:  # there the point comes first, and the order of tokens is that of the prompts
        points, labels = points[:, [2, 0, 1]], labels[:, [2, 0, 1]]
    elif boxed:
        points, labels = points[:, :2], labels[:, :2]
    has_mask = torch.full((1,), float(with_mask))
    decoder = Decoder(sam, processor)
    masks, scores, low_res = decoder(maps, points, labels.float(), mask, has_mask, torch.tensor([50.0, 64.0]))
    reference = expected.pred_masks[:, 0]
    assert (low_res - reference).abs().max() < 1e-4 * reference.abs().max()
    assert (scores - expected.iou_scores[:, 0]).abs().max() < 1e-4 * expected.iou_scores.abs().max()
    assert masks.shape == (2, 1, 50, 64)


@pytest.mark.parametrize("size", [(40, 60), (64, 64), (90, 31)])
def test_an_annotators_image_becomes_the_processors_pixels(size):
    processor = SamAdaptProcessor(64, 8)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = Normalise(processor)(torch.from_numpy(resized_for_annotators(image, processor)))
    assert (found - processor([image])["pixel_values"]).abs().max() < 1e-5
