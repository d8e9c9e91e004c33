"""The processor of SAM 2 and 3: transformers' pixel values, and its files, without torchvision."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sams import RANDOM_SAMS

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_base
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.sam.families import SAM2, SAM3_TRACKER
from hf_sam_adapt.sam.processing import SamAdaptProcessor


FAMILIES = {"sam2": (SAM2, 1024, 16), "sam3_tracker": (SAM3_TRACKER, 1008, 14)}


def by_transformers(image: np.ndarray, side: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """`TorchvisionBackend._preprocess` of transformers 5.23 for an image (H, W, 3), without torchvision.

    `tvF.resize` of uint8 on a CPU is `interpolate` with antialiasing; `tvF.normalize` subtracts and divides.
    """
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()[None]
    resized = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    rescale_factor = 1 / 255
    scaled_mean = torch.tensor(mean) * (1.0 / rescale_factor)
    scaled_std = torch.tensor(std) * (1.0 / rescale_factor)
    return resized.to(torch.float32).sub(scaled_mean[:, None, None]).div_(scaled_std[:, None, None])


@pytest.mark.parametrize("size", [(300, 451), (1024, 1024), (1200, 700), (1, 900)])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_pixel_values_are_those_of_transformers(model_type, size):
    family, side, patch = FAMILIES[model_type]
    processor = SamAdaptProcessor(side, patch, **family.processor)
    image = np.random.default_rng(size[1]).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted = by_transformers(image, side, processor.image_mean, processor.image_std)
    for given in (image, Image.fromarray(image)):
        found = processor([given])
        assert torch.equal(found["pixel_values"], wanted)
        assert found["reshaped_input_sizes"].tolist() == [[side, side]]
    packed = processor.pack([image])
    assert packed["pixel_values"].dtype == torch.uint8  # as the loaders hand it over


def test_its_resizing_is_not_pillows():
    """Or the comparison above would not tell which is used: they round a few pixels in a thousand differently."""
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    family = {**SAM2.processor, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    ours, pillows = (
        SamAdaptProcessor(128, 16, **{**family, "arithmetic": kind}).pack([image])["pixel_values"].int()
        for kind in ("torchvision", "pillow")
    )
    assert 0 < (ours != pillows).float().mean() < 0.01 and (ours - pillows).abs().max() == 1


def test_prompts_and_masks_follow_the_squash():
    processor = SamAdaptProcessor(112, 14, **SAM3_TRACKER.processor)
    mask = np.zeros((50, 200), np.uint8)
    mask[10:30, 100:150] = 1
    prompt = Prompt("box", boxes=np.array([[100.0, 10.0, 149.0, 29.0]]), masks=mask[None].astype(bool))
    found = processor([np.zeros((50, 200, 3), np.uint8)], masks=[mask], prompts=[prompt], mask_values="index")
    (ready,) = found["prompts"]
    torch.testing.assert_close(ready.boxes, torch.tensor([[56.0, 22.4, 83.44, 64.96]]))
    assert ready.masks.shape == (1, 32, 32) and processor.mask_size == 32
    labels = found["labels"][0]
    assert not (labels == 255).any() and labels.bool().float().mean() == pytest.approx(mask.mean(), abs=0.01)
    assert (ready.masks > 0).float().mean() == pytest.approx(mask.mean(), abs=0.02)
    (back,) = processor.post_process_masks(torch.where(ready.masks > 0, 1.0, -1.0)[None], [(50, 200)], [(112, 112)])
    assert ((back[0] > 0).numpy() == mask).mean() > 0.97


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_file_is_one_that_transformers_reads(model_type, tmp_path):
    family, side, patch = FAMILIES[model_type]
    processor = SamAdaptProcessor(side, patch, **family.processor)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "Sam2ImageProcessor"
    assert written["size"] == {"height": side, "width": side}
    assert written["mask_size"] == {"height": 4 * side // patch, "width": 4 * side // patch}
    assert written["image_mean"] == processor.image_mean and written["image_std"] == processor.image_std
    again = SamAdaptProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict() and again.resize == "squash" and again.arithmetic == "torchvision"
    padded = SamAdaptProcessor.from_dict(processor.to_dict(), resize="pad")
    assert padded.to_dict()["image_processor_type"] == "SamAdaptProcessor"
    assert SamAdaptProcessor.from_dict(padded.to_dict()).to_dict() == padded.to_dict()


# What Meta's checkpoints on the Hub come with, but for the sizes.
META = {
    "sam2": {"image_processor_type": "Sam2ImageProcessorFast", "do_pad": None, "resample": 2, "size": (128, 128)},
    "sam3_tracker": {"image_processor_type": "Sam3ImageProcessorFast", "do_pad": False, "size": (112, 112)},
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("model_type", META)
def test_the_file_of_a_checkpoint_is_read(model_type, nested, tmp_path):
    RANDOM_SAMS[model_type]().save_pretrained(tmp_path)
    family, content = FAMILIES[model_type][0], dict(META[model_type])
    content["size"] = dict(zip(("height", "width"), content["size"]))
    content |= {"image_mean": family.processor["image_mean"], "image_std": family.processor["image_std"]}
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": content} if nested else content))
    processor = load_base(str(tmp_path))[1]
    wanted = SamAdaptProcessor(content["size"]["height"], FAMILIES[model_type][2], **family.processor)
    assert processor.to_dict() == wanted.to_dict()
    (tmp_path / name).write_text(json.dumps(content | {"size": {"height": 256, "width": 256}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content | {"size": {"height": 896, "width": 896}}))
    with pytest.raises(UserError, match="its processor gives images of 896 pixels a side, its model takes 1"):
        load_base(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content | {"size": {"height": 128, "width": 64}}))
    with pytest.raises(UserError, match="size is 64x128; only squares are supported"):
        load_base(str(tmp_path))


def test_an_unknown_arithmetic_is_refused():
    with pytest.raises(UserError, match="arithmetic: 'cv2' is unknown; choose from pillow, torchvision"):
        SamAdaptProcessor(64, 8, arithmetic="cv2")
