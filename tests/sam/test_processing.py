"""The processor gives the numbers of transformers' own, and its geometry goes there and back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.prompts import Prompt, derive_prompts
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.sam.resampling import resized


SIZES = [(50, 70), (333, 200), (64, 64), (70, 900), (241, 480), (127, 129)]


def reference(size: int) -> SamImageProcessorPil:
    pad = {"height": size, "width": size}
    return SamImageProcessorPil(
        size={"longest_edge": size}, pad_size=pad, mask_size={"longest_edge": size}, mask_pad_size=pad
    )


def random_image(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [64, 256])
def test_pixel_values_equal_transformers(size, image_size):
    rng = np.random.default_rng(hash((size, image_size)) % 1000)
    image, mask = random_image(rng, size), rng.integers(0, 3, size, dtype=np.uint8)
    expected = reference(image_size)(image, segmentation_maps=mask, return_tensors="pt")
    got = SamAdaptProcessor(image_size)(image, mask)
    assert got["pixel_values"].dtype == torch.float32
    assert torch.equal(got["pixel_values"], expected["pixel_values"])
    assert got["original_sizes"].tolist() == [list(size)]
    assert got["reshaped_input_sizes"].tolist() == torch.as_tensor(expected["reshaped_input_sizes"]).tolist()

    height, width = got["reshaped_input_sizes"][0].tolist()
    inside = got["labels"][0, :height, :width]
    # Pixels that fall exactly between two are rounded either way.
    assert (inside != expected["labels"][0, :height, :width]).float().mean() < 0.01
    outside = torch.ones(image_size, image_size, dtype=torch.bool)
    outside[:height, :width] = False
    assert (got["labels"][0][outside] == 255).all()
    assert (got["pixel_values"][0][:, outside] == 0).all()


def test_a_batch_equals_its_images_one_at_a_time():
    rng = np.random.default_rng(1)
    processor = SamAdaptProcessor(64, patch_size=8)
    images = [random_image(rng, size) for size in SIZES]
    masks = [rng.integers(0, 2, size, dtype=np.uint8) for size in SIZES]
    batch = processor(images, masks)
    for index, (image, mask) in enumerate(zip(images, masks)):
        single = processor(image, mask)
        for name in ("pixel_values", "labels", "original_sizes", "reshaped_input_sizes"):
            assert torch.equal(batch[name][index], single[name][0])


def test_input_kinds_agree():
    rng = np.random.default_rng(2)
    processor = SamAdaptProcessor(64)
    image = random_image(rng, (40, 60))
    expected = processor(image)["pixel_values"]
    tensor = torch.from_numpy(image)
    for other in (Image.fromarray(image), tensor, tensor.permute(2, 0, 1), [image], image[None], tensor[None]):
        assert torch.equal(processor(other)["pixel_values"], expected)
    grey = image[..., 0]
    three = processor(np.repeat(grey[..., None], 3, axis=2))["pixel_values"]
    for other in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)):
        assert torch.equal(processor(other)["pixel_values"], three)
    wide = processor(grey.astype(np.uint16) * 257)["pixel_values"]
    assert torch.equal(wide, three)


def test_squash_fills_the_square():
    rng = np.random.default_rng(3)
    image, mask = random_image(rng, (40, 100)), rng.integers(0, 2, (40, 100), dtype=np.uint8)
    got = SamAdaptProcessor(64, resize="squash")(image, mask)
    assert got["reshaped_input_sizes"].tolist() == [[64, 64]]
    assert (got["labels"] != 255).all()
    resized = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))
    expected = (resized / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got["pixel_values"][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize("size", [(60, 90), (200, 130), (64, 64)])
def test_masks_survive_the_round_trip(resize, size):
    """Labels of the network's size, taken as logits, come back as the mask but for pixels at the border."""
    processor = SamAdaptProcessor(128, patch_size=8, resize=resize)
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] - 5] = 1
    features = processor(np.zeros((*size, 3), np.uint8), mask)
    logits = (features["labels"] == 1).float() * 2 - 1
    back = processor.post_process_masks([logits], features["original_sizes"], features["reshaped_input_sizes"])
    assert back[0].shape == (1, *size)
    predicted = (back[0][0] > 0).numpy()
    overlap = (predicted & (mask == 1)).sum() / (predicted | (mask == 1)).sum()
    assert overlap > 0.93
    shifted = np.roll(mask, 4, axis=1)
    assert (predicted & (shifted == 1)).sum() / (predicted | (shifted == 1)).sum() < overlap - 0.05


def test_post_processing_equals_transformers():
    rng = np.random.default_rng(4)
    processor, original = SamAdaptProcessor(64, patch_size=8), reference(64)
    features = processor([random_image(rng, size) for size in SIZES])
    logits = torch.randn(len(SIZES), 2, 32, 32)
    sizes = features["original_sizes"], features["reshaped_input_sizes"]
    got = processor.post_process_masks(logits, *sizes)
    expected = original.post_process_masks(list(logits[:, None]), *sizes, binarize=False)
    for ours, theirs, size in zip(got, expected, SIZES):
        assert ours.shape == (2, *size)
        torch.testing.assert_close(ours, theirs[0])
    empty = processor.post_process_masks([logits[0, :0]], sizes[0][:1], sizes[1][:1])
    assert empty[0].shape == (0, *SIZES[0])


@pytest.mark.parametrize("size", SIZES)
def test_coordinates_equal_transformers(size):
    rng = np.random.default_rng(5)
    points = rng.uniform(0, 50, (3, 2, 2)).astype(np.float32)
    boxes = rng.uniform(0, 50, (4, 4)).astype(np.float32)
    processor = SamAdaptProcessor(64)
    image = random_image(rng, size)
    expected = SamProcessor(reference(64))(
        image, input_points=[points.tolist()], input_boxes=[boxes.tolist()], return_tensors="pt"
    )
    point = Prompt("point", points=points, point_labels=np.ones((3, 2), np.int64))
    got = processor(image, prompts=point)["prompts"][0]
    torch.testing.assert_close(got.points, expected["input_points"][0].float())
    got = processor(image, prompts=Prompt("box", boxes=boxes))["prompts"][0]
    torch.testing.assert_close(got.boxes, expected["input_boxes"][0].float())


def test_squash_scales_each_axis():
    prompt = Prompt("box", boxes=np.array([[10, 5, 60, 20]], np.float32))
    got = SamAdaptProcessor(64, resize="squash").transform_prompts([prompt], [(32, 128)])[0]
    assert got.boxes.tolist() == [[5, 10, 30, 40]]
    assert prompt.boxes.tolist() == [[10, 5, 60, 20]]


@pytest.mark.parametrize("size", [(48, 64), (128, 30)])
def test_targets_and_mask_prompts_lie_where_the_labels_do(size):
    rng = np.random.default_rng(6)
    processor = SamAdaptProcessor(64, patch_size=8)
    mask = np.zeros(size, np.uint8)
    mask[2:20, 3:18] = 1
    mask[24:40, 5:25] = 1
    mask[10:14, 10:14] = 255
    prompt = derive_prompts(mask, "mask", rng=rng)
    features = processor(random_image(rng, size), mask, prompt)
    ready, labels = features["prompts"][0], features["labels"][0]
    assert ready.targets.shape == (2, 64, 64) and ready.targets.dtype == torch.uint8
    assert ((ready.targets == 255) == (labels == 255)).all()
    assert ((ready.targets == 1).any(0) == (labels == 1)).all()

    exact = Prompt("mask", masks=prompt.targets)
    logits = processor.transform_prompts([exact], [size])[0].masks
    assert logits.shape == (2, 32, 32) and logits.unique().tolist() == [-10, 10]
    height, width = features["reshaped_input_sizes"][0].tolist()
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[: height // 2, : width // 2] = True
    assert (logits[:, ~inside] == -10).all()
    # The middle of every 2 x 2 block of the input.
    free = labels[1::2, 1::2] != 255
    assert torch.equal((logits > 0).any(0)[free], (labels[1::2, 1::2] == 1)[free])


def test_save_and_load(tmp_path):
    rng = np.random.default_rng(7)
    image = random_image(rng, (30, 64))
    for resize in ("pad", "squash"):
        saved = SamAdaptProcessor(128, patch_size=8, resize=resize, image_mean=(0.1, 0.2, 0.3), image_std=(1, 2, 3))
        files = saved.save_pretrained(tmp_path / resize)
        assert [file.rsplit("/", 1)[1] for file in files] == ["preprocessor_config.json"]
        loaded = SamAdaptProcessor.from_pretrained(tmp_path / resize)
        assert loaded.to_dict() == saved.to_dict()
        assert torch.equal(loaded(image)["pixel_values"], saved(image)["pixel_values"])
    changed = SamAdaptProcessor.from_pretrained(tmp_path / "pad", image_size=64, resize="squash")
    assert (changed.image_size, changed.patch_size, changed.resize) == (64, 8, "squash")
    assert changed.image_mean == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("size", [(30, 50), (200, 130), (64, 64)])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", 2, 3])
@pytest.mark.parametrize("antialias", [True, False])
def test_resampling_is_what_it_says_and_is_kept(tmp_path, size, resample, antialias):
    image = random_image(np.random.default_rng(9), size)
    name = {2: "bilinear", 3: "bicubic"}.get(resample, resample)
    saved = SamAdaptProcessor(64, resize="squash", resample=resample, antialias=antialias)
    saved.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    if (name, antialias) == ("bilinear", True):
        assert "resample" not in stored
    else:
        assert (stored["resample"], stored["antialias"]) == ({"bilinear": 2, "bicubic": 3}[name], antialias)
    if antialias:  # torchvision's Resize of a PIL image, as in AutoGluon
        resized = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling[name.upper()]))
    else:  # CoSAM's: interpolated in floats, then cast
        floats = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        floats = torch.nn.functional.interpolate(floats, (64, 64), mode=name)[0].permute(1, 2, 0)
        resized = floats.numpy().clip(0, 255).astype(np.uint8)
    expected = (resized / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    for processor in (
        saved,
        SamAdaptProcessor.from_pretrained(tmp_path),
        SamAdaptProcessor.from_dict(saved.to_dict()),
    ):
        got = processor(image)["pixel_values"][0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-6)
        assert (processor.resample, processor.antialias) == (name, antialias)


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize(("resample", "antialias"), [("bicubic", True), ("bilinear", False), ("bicubic", False)])
def test_resampling_changes_the_input_and_nothing_else(resize, resample, antialias):
    image = random_image(np.random.default_rng(10), (100, 80))
    mask = np.random.default_rng(11).integers(0, 2, (100, 80)).astype(np.uint8)
    usual = SamAdaptProcessor(64, resize=resize)(image, mask)
    other = SamAdaptProcessor(64, resize=resize, resample=resample, antialias=antialias)(image, mask)
    assert (usual["pixel_values"] - other["pixel_values"]).abs().max() > 0.1
    assert torch.equal(usual["labels"], other["labels"])


def test_channels_are_resampled_alike():
    image = np.random.default_rng(12).random((90, 120, 5)).astype(np.float32)
    floats = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(floats, (64, 64), mode="bilinear")[0].permute(1, 2, 0)
    assert np.allclose(resized(image, (64, 64), antialias=False), expected, atol=1e-6)
    single = [np.asarray(Image.fromarray(image[..., c]).resize((64, 64), Image.Resampling.BICUBIC)) for c in range(5)]
    assert np.array_equal(resized(image, (64, 64), "bicubic"), np.stack(single, axis=2))


def test_transformers_reads_a_padding_processor(tmp_path):
    rng = np.random.default_rng(8)
    processor = SamAdaptProcessor(64)
    processor.save_pretrained(tmp_path)
    image = random_image(rng, (30, 50))
    theirs = SamProcessor.from_pretrained(tmp_path)
    assert torch.equal(theirs(image, return_tensors="pt")["pixel_values"], processor(image)["pixel_values"])
    for other in ({"resize": "squash"}, {"resample": "bicubic"}, {"antialias": False}):
        SamAdaptProcessor(64, **other).save_pretrained(tmp_path)
        with pytest.raises(ValueError):
            SamProcessor.from_pretrained(tmp_path)


def test_reads_the_file_of_a_plain_sam(tmp_path):
    config = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "SamImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "pad_size": {"height": 1024, "width": 1024},
        "processor_class": "SamProcessor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 1024},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = SamAdaptProcessor.from_pretrained(tmp_path)
    assert (processor.image_size, processor.patch_size, processor.resize) == (1024, 16, "pad")
    assert (processor.resample, processor.antialias) == ("bilinear", True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"resample": 3}))
    assert SamAdaptProcessor.from_pretrained(tmp_path).resample == "bicubic"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"resample": 1}))
    with pytest.raises(UserError, match="resample: 1 is unknown"):
        SamAdaptProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"do_normalize": False}))
    with pytest.raises(UserError, match="do_normalize"):
        SamAdaptProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, image: SamAdaptProcessor(100), "image_size: 100"),
        (lambda p, image: SamAdaptProcessor(64, resize="stretch"), "'stretch'"),
        (lambda p, image: SamAdaptProcessor(64, resample="lanczos"), "resample: 'lanczos'"),
        (lambda p, image: p([]), "images: none given"),
        (lambda p, image: p(image, np.zeros((4, 4), np.uint8)), "4x4 for an image of 30x20"),
        (lambda p, image: p([image, image], [np.zeros((20, 30), np.uint8)]), "1 given for 2 images"),
        (lambda p, image: p(image.astype(np.float32)), "float32"),
        (lambda p, image: p(np.zeros((4, 5, 7), np.uint8)), "4, 5, 7"),
        (lambda p, image: p(image, prompts=Prompt("mask", masks=np.ones((1, 4, 4), bool))), "4x4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call(SamAdaptProcessor(64), np.zeros((20, 30, 3), np.uint8))


def test_prompts_and_logits_are_one_an_image():
    processor = SamAdaptProcessor(64)
    with pytest.raises(ValueError, match="shorter"):
        processor.transform_prompts([Prompt.point((1, 1))] * 2, [(10, 10)])
    with pytest.raises(ValueError, match="shorter"):
        processor.post_process_masks(torch.zeros(2, 1, 16, 16), [(10, 10)], [(64, 64)])
