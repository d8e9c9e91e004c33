"""Adapters to export, on small SAMs, and how an exported folder is compared with PyTorch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from hf_sam_adapt import load_tiny_sam
from hf_sam_adapt.convert.export.check import point_arrays
from hf_sam_adapt.convert.export.graphs import EMBEDDINGS, as_outputs, embedding_names
from hf_sam_adapt.inference.forward import encode, sam_of, segment
from hf_sam_adapt.inference.loading import load_base
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.sam.attention import use_fast_attention
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.tuners.moda import ModaModel


def save_adapter_of(base, folder, config):
    """A random adapter of a model, by its name, with its processor, as a run leaves it; returns the folder."""
    sam, processor = load_base(base)
    if (side := getattr(config, "image_size", None)) is not None:
        processor = SamAdaptProcessor.from_dict(processor.to_dict(), image_size=side)
    model = get_peft_model(sam, config)
    if isinstance(config, LoraConfig):  # PEFT's own starts without an effect
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_pool_of_tiny(folder, config, domains=("one", "two")):
    """A pool of random adapters, whose router tells dark images from bright ones."""
    sam, processor = load_tiny_sam()
    pool = ModaModel(sam, config).eval()
    for place, name in enumerate(domains):
        pool.add_domain(name)
        pool.observe(images_of(processor, 4, 10 + place) + 2 * place)
        pool.finish_domain()
    pool.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def images_of(processor, count, seed=0):
    """Different images: noise on slopes, float (count, C, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    side, channels = processor.image_size, processor.channels or 3
    slope = torch.linspace(-1, 1, side)
    slopes = torch.stack([slope[:, None] * index + slope for index in range(count)])[:, None]
    return slopes + 0.5 * torch.randn(count, channels, side, side, generator=generator)


def prompts_of(processor, seed=0):
    """By name: the images that a job is about, and their prompts in coordinates of the network's input."""
    generator = torch.Generator().manual_seed(seed)

    def points(objects, count):
        places = torch.rand(objects, count, 2, generator=generator) * processor.image_size
        labels = (torch.arange(count) % 2 == 0).long().expand(objects, -1)
        return Prompt("point", points=places, point_labels=labels)

    corners = torch.rand(2, 2, 2, generator=generator).sort(dim=1).values * processor.image_size
    return {
        "one point": (1, [points(1, 1)]),
        "five objects": (1, [points(5, 1)]),
        "five points": (3, [points(1, 5) for _ in range(3)]),
        "boxes": (1, [Prompt("box", boxes=corners.flatten(1))]),
    }


def run_without_torch(folder, jobs, tmp_path):
    """The outputs of `jobs`, arrays by `<job>/<part>/<input>`."""
    given, out = Path(tmp_path) / "jobs.npz", Path(tmp_path) / "outputs.npz"
    np.savez(given, **jobs)
    script = Path(__file__).with_name("onnx_process.py")
    done = subprocess.run([sys.executable, script, folder, given, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def relative_error(found, expected):
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@torch.no_grad()
def compare_with_pytorch(loaded, folder, tmp_path, size=(150, 211), bound=1e-4, domain=None):
    """Encoder, decoder and promptless file against `segment`; returns how many comparisons were made."""
    model, processor = loaded.model.eval(), loaded.processor
    use_fast_attention(model, "eager")  # transformers' own, not what was exported
    where = "" if domain is None else f"{domain}/"
    have = {path.relative_to(folder).with_suffix("").as_posix() for path in Path(folder).rglob("*.onnx")}
    images = images_of(processor, 3)
    encoder = f"{where}encoder" if f"{where}encoder" in have else "router" if "router" in have else None
    if encoder is None:
        done = run_without_torch(folder, {f"{n}/promptless/image": images[:n].numpy() for n in (1, 3)}, tmp_path)
        for count in (1, 3):
            expected = torch.stack(segment(model, images[:count], [Prompt("none")] * count)).numpy()
            assert relative_error(done[f"{count}/promptless/logits"], expected) < bound
        return 2
    embeddings = encode(model, images)
    done = run_without_torch(folder, {f"{n}/{encoder}/image": images[:n].numpy() for n in (1, 3)}, tmp_path)
    names = embedding_names(sam_of(model), embeddings.early is not None)
    maps = {name: done[f"3/{encoder}/{name}"] for name in names}
    assert {file.rpartition("/")[2] for file in done.files} & EMBEDDINGS == set(names)
    for rows in (1, 3):
        for name, values in zip(names, as_outputs(embeddings[list(range(rows))])):
            assert relative_error(done[f"{rows}/{encoder}/{name}"], values.numpy()) < bound
    jobs, expected, mask = {}, {}, processor.mask_size
    for name, (count, prompts) in prompts_of(processor).items():
        arrays = [point_arrays(prompt, padded="image_embeddings" in maps) for prompt in prompts]
        owner = [row for row, (coords, _) in enumerate(arrays) for _ in coords]
        inputs = {key: value[:, owner] if value.ndim == 5 else value[owner] for key, value in maps.items()}
        inputs["point_coords"] = np.concatenate([coords for coords, _ in arrays])
        inputs["point_labels"] = np.concatenate([labels for _, labels in arrays])
        inputs["mask_input"] = np.random.default_rng(0).standard_normal((len(owner), 1, mask, mask)).astype(np.float32)
        inputs["has_mask_input"] = np.zeros(1, np.float32)
        inputs["orig_im_size"] = np.float32(size)
        jobs |= {f"{name}/{where}decoder/{key}": value for key, value in inputs.items()}
        rows = embeddings[list(range(count))]
        expected[name] = torch.cat(segment(model, None, prompts, image_embeddings=rows))
    if f"{where}promptless" in have:
        given = maps if "router" in have else {"image": images.numpy()}
        jobs |= {f"none/{where}promptless/{key}": value for key, value in given.items()}
    done = run_without_torch(folder, jobs, tmp_path)
    for name, logits in expected.items():
        logits = logits[:, None]  # (R, 1, h, w)
        assert relative_error(done[f"{name}/{where}decoder/low_res_masks"], logits.numpy()) < bound, name
        sizes = [size] * len(logits), [processor.reshaped_size(size)] * len(logits)
        full = torch.stack(processor.post_process_masks(logits, *sizes)).numpy()
        masks = done[f"{name}/{where}decoder/masks"]
        assert masks.shape == (len(logits), 1, *size) and relative_error(masks, full) < bound
        assert ((masks > 0) != (full > 0)).mean() <= 1e-4
    if f"{where}promptless" in have:
        logits = torch.stack(segment(model, None, [Prompt("none")] * 3, image_embeddings=embeddings)).numpy()
        assert relative_error(done[f"none/{where}promptless/logits"], logits) < bound
    return len(expected)
