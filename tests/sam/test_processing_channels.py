"""The processor with images of any channels: resized as floats, normalised, padded with zeros, stored, read back."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.normalization import NORMALIZATIONS, fit_normalization
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.embeddings.cache import image_digest
from hf_sam_adapt.prompts import derive_prompts
from hf_sam_adapt.sam.processing import SamAdaptProcessor


def write_folder(root, kind: str):
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((40, 64 - number), np.uint8)
        mask[8:30, 10:40] = 1
        if kind == "png":
            Image.fromarray((rng.integers(0, 4000, mask.shape) + 30000 * mask.astype(int)).astype(np.uint16)).save(
                root / "images" / f"{number}.png"
            )
        elif kind == "npy":
            image = rng.gamma(1, 50, (*mask.shape, 6)) * (1 + mask[..., None])
            np.save(root / "images" / f"{number}.npy", image)
        else:
            image = (rng.gamma(1, 50, (6, *mask.shape)) * (1 + mask)).astype(np.float32)
            tifffile.imwrite(root / "images" / f"{number}.tif", image, photometric="minisblack")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


@pytest.mark.parametrize("kind, channels", [("png", 1), ("npy", 6), ("tif", 6)])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_from_files_to_pixel_values_and_back_from_disk(tmp_path, kind, channels, normalization):
    data = load_segmentation_dataset(write_folder(tmp_path / "data", kind), channels=channels)
    fitted = fit_normalization(data.train, normalization, seed=0)
    processor = SamAdaptProcessor(64, patch_size=8, channels=channels, normalization=fitted)
    samples = [data.train[index] for index in range(len(data.train))]
    images, masks = [sample.image for sample in samples], [sample.mask for sample in samples]
    prompts = [derive_prompts(mask, "box") for mask in masks]
    inputs = processor(images, masks, prompts)
    values = inputs["pixel_values"]
    assert values.shape == (len(samples), channels, 64, 64) and values.dtype == torch.float32
    assert values.isfinite().all() and values.abs().max() < 40
    for row, size in zip(values, inputs["reshaped_input_sizes"].tolist()):
        assert (row[:, size[0] :] == 0).all() and (row[:, :, size[1] :] == 0).all()
    bright = inputs["labels"] == 1
    assert values.mean(dim=1)[bright].mean() > values.mean(dim=1)[inputs["labels"] == 0].mean() + 0.3 * (
        normalization != "imagenet"
    )
    one = processor(images[0])["pixel_values"][0]
    assert torch.equal(one, values[0])

    processor.save_pretrained(tmp_path / "saved")
    loaded = SamAdaptProcessor.from_pretrained(tmp_path / "saved")
    assert (loaded.channels, loaded.normalization) == (channels, fitted) and loaded.to_dict() == processor.to_dict()
    assert torch.equal(loaded(images, masks, prompts)["pixel_values"], values)
    content = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert content["normalization"] == fitted and content["image_processor_type"] == "SamAdaptProcessor"


@pytest.mark.slow
def test_a_fresh_process_reads_the_same_values(tmp_path):
    data = load_segmentation_dataset(write_folder(tmp_path / "data", "npy"), channels=6)
    processor = SamAdaptProcessor(64, channels=6, normalization=fit_normalization(data.train, "db", 0))
    processor.save_pretrained(tmp_path / "saved")
    code = (
        "import sys, numpy as np; from hf_sam_adapt import SamAdaptProcessor;"
        "from hf_sam_adapt.data.channels import read_channels;"
        "p = SamAdaptProcessor.from_pretrained(sys.argv[1]);"
        "np.save(sys.argv[3], p(read_channels(sys.argv[2], p.channels))['pixel_values'].numpy())"
    )
    paths = [tmp_path / "saved", data.train[0].path, tmp_path / "out.npy"]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), processor(data.train[0].image)["pixel_values"].numpy())


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize("size", [(200, 150), (31, 47), (64, 300)])
def test_floats_are_resized_with_antialiasing(size, resize):
    rng = np.random.default_rng(2)
    image = rng.normal(1000, 300, (*size, 5)).astype(np.float32)
    plain = {"kind": "zscore", "mean": [1000.0] * 5, "std": [300.0] * 5}
    got = SamAdaptProcessor(64, resize=resize, channels=5, normalization=plain)(image)
    height, width = got["reshaped_input_sizes"][0].tolist()
    tensor = torch.from_numpy(image.transpose(2, 0, 1))[None]
    expected = F.interpolate(tensor, (height, width), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(got["pixel_values"][0, :, :height, :width], (expected - 1000) / 300, atol=1e-4, rtol=0)
    plainly = F.interpolate(tensor, (height, width), mode="bilinear")[0]
    if max(size) > 100:
        assert (plainly - expected).abs().mean() > 30


def test_kinds_of_input_agree():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 4000, (40, 60, 6)).astype(np.uint16)
    fitted = {"kind": "zscore", "mean": [2000.0] * 6, "std": [900.0] * 6}
    processor = SamAdaptProcessor(64, channels=6, normalization=fitted)
    expected = processor(image.astype(np.float32))["pixel_values"]
    tensor = torch.from_numpy(image.astype(np.int32))
    for other in (image, image.astype(np.float64), tensor, tensor.permute(2, 0, 1), tensor.float(), image[None]):
        assert torch.equal(processor(other)["pixel_values"], expected)
    one = SamAdaptProcessor(64, channels=1, normalization={"kind": "zscore", "mean": [2000.0], "std": [900.0]})
    for other in (image[..., 0], image[..., :1], Image.fromarray(image[..., 0]), tensor[..., 0]):
        assert torch.equal(one(other)["pixel_values"][0, 0], expected[0, 0])


def test_statistics_of_photographs(tmp_path, make_dataset):
    """Without `channels` a normalisation replaces ImageNet's; RGB pixels are resized as ever."""
    data = load_segmentation_dataset(make_dataset())
    image = data.train[0].image
    usual = SamAdaptProcessor(64)
    own = SamAdaptProcessor(64, normalization=fit_normalization(data.train, "zscore"))
    height, width = usual(image)["reshaped_input_sizes"][0].tolist()
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)).astype(np.float64)
    expected = (resized - own.normalization["mean"]) / own.normalization["std"]
    got = own(image)["pixel_values"][0]
    np.testing.assert_allclose(got[:, :height, :width].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert (got[:, height:] == 0).all() and not torch.equal(got, usual(image)["pixel_values"][0])
    as_imagenet = SamAdaptProcessor(64, normalization=fit_normalization(data.train, "imagenet"))
    torch.testing.assert_close(as_imagenet(image)["pixel_values"], usual(image)["pixel_values"], atol=1e-5, rtol=0)
    own.save_pretrained(tmp_path / "own")
    loaded = SamAdaptProcessor.from_pretrained(tmp_path / "own")
    assert loaded.channels is None and torch.equal(loaded(image)["pixel_values"][0], got)
    assert not {"channels", "normalization"} & set(usual.to_dict())
    assert SamAdaptProcessor.from_dict(own.to_dict(), normalization=None).to_dict() == usual.to_dict()


def test_bad_input():
    fitted = {"kind": "zscore", "mean": [0.0] * 6, "std": [1.0] * 6}
    with pytest.raises(UserError, match="normalization: images of 6 channels need one"):
        SamAdaptProcessor(64, channels=6)
    with pytest.raises(UserError, match="for each of 5 channels"):
        SamAdaptProcessor(64, channels=5, normalization=fitted)
    processor = SamAdaptProcessor(64, channels=6, normalization=fitted)
    with pytest.raises(UserError, match="3 channels, but channels is 6"):
        processor(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(UserError, match="2 of 600 pixels are NaN"):
        image = np.zeros((20, 30, 6), np.float32)
        image[3, 4:6, 1] = np.nan
        processor(image)


def test_digests_tell_types_apart():
    image = np.random.default_rng(4).random((6, 5, 3)).astype(np.float32)
    assert image_digest(image) != image_digest(image.view(np.int32)) != image_digest(image.view(np.uint8))
    assert image_digest(image) == image_digest(image.copy()) != image_digest(image * 2)
