"""ViT-B at 1024 pixels as ONNX: sizes of the files, and times of encoder and decoder beside PyTorch.

Random weights, with a SAM-Adapter in the graph; the masks mean nothing, the computation is that of a trained one.

    python benchmarks/export_vit_b.py --precision no fp16 int8
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import yaml
from peft import get_peft_model
from results import publish, table
from transformers import SamConfig, SamModel

from hf_sam_adapt import SamAdapterConfig, SamAdaptProcessor
from hf_sam_adapt.convert.export import export
from hf_sam_adapt.inference.forward import encode, segment
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.prompts import Prompt


def make_run(folder: Path) -> None:
    """A SAM ViT-B and an adapter of it, all weights random."""
    torch.manual_seed(0)
    sam = SamModel(SamConfig())
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if not ("norm" in name and name.endswith("weight")):
                parameter.normal_(std=0.02)
    sam.save_pretrained(folder / "sam")
    SamAdaptProcessor().save_pretrained(folder / "sam")
    base = SamModel.from_pretrained(folder / "sam")
    get_peft_model(base, SamAdapterConfig(init_weights=False)).save_pretrained(folder / "run")
    SamAdaptProcessor().save_pretrained(folder / "run")
    (folder / "run/recipe.yaml").write_text(yaml.safe_dump({"prompts": ["box"]}))


def seconds(*calls: Callable[[], object], repeats: int) -> list[float]:
    """The median time of each call, in turn."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, times in zip(calls, found):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [float(np.median(times[1:])) for times in found]


@torch.no_grad()
def measure(folder: Path, precision: str, repeats: int) -> list[str]:
    out, start = folder / precision, time.perf_counter()
    done = export(str(folder / "run"), out, precision=precision, max_difference=1.0, progress=False)
    exporting = time.perf_counter() - start
    model = load_adapted(str(folder / "run")).model.eval()
    image, box = torch.randn(1, 3, 1024, 1024), torch.tensor([[100.0, 120.0, 500.0, 700.0]])
    encoder, decoder = (onnxruntime.InferenceSession(out / f"{name}.onnx") for name in ("encoder", "decoder"))
    embeddings = encode(model, image)
    inputs = {
        "image_embeddings": embeddings.maps.numpy(),
        "point_coords": box.reshape(1, 2, 2).numpy(),
        "point_labels": np.array([[2, 3]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([768, 1024], np.float32),
    }
    prompt = Prompt("box", boxes=box)
    torch_encoder, onnx_encoder = seconds(
        lambda: encode(model, image), lambda: encoder.run(None, {"image": image.numpy()}), repeats=repeats
    )
    torch_decoder, onnx_decoder = seconds(
        lambda: segment(model, None, [prompt], image_embeddings=embeddings),
        lambda: decoder.run(None, inputs),
        repeats=3 * repeats,
    )
    sizes = [f"{done.files[f'{name}.onnx'] / 1e6:.1f}" for name in ("encoder", "decoder")]
    times = [f"{value:.2f}" for value in (torch_encoder, onnx_encoder, torch_decoder, onnx_decoder)]
    return [precision, *sizes, *times, f"{exporting:.0f}", f"{done.comparisons[0].difference:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["no", "fp16", "int8"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder))
        rows = [measure(Path(folder), precision, args.repeats) for precision in args.precision]
    header = [
        "precision",
        "encoder, MB",
        "decoder, MB",
        "encoder, s: PyTorch",
        "onnxruntime",
        "decoder, s: PyTorch",
        "onnxruntime",
        "export, s",
        "largest difference",
    ]
    text = (
        f"One image, a box, {torch.get_num_threads()} threads for PyTorch, onnxruntime's default; medians of "
        f"{args.repeats} calls in turn. Random weights, SAM-Adapter in the graph. The time of the export has the "
        "comparison with PyTorch in it; differences are of logits, as a share of the image's largest."
    )
    publish("ViT-B at 1024 pixels as ONNX", f"{table(header, rows)}\n\n{text}")


if __name__ == "__main__":
    main()
