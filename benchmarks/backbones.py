"""Parameters, and operations of an image, of each SAM that can be adapted; counted on tensors without content.

python benchmarks/backbones.py
"""

from __future__ import annotations

import torch
from hiera import HIERAS, build_hiera
from preset_memory import SIZES
from results import publish, table
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    PreTrainedModel,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

from hf_sam_adapt.sam.families import encoder_shape, family_of, find_mask_decoder, find_vision_encoder


SAMS = [
    *(f"sam-{size}" for size in SIZES),
    *(f"sam-hq-{size}" for size in SIZES),
    *(f"sam2.1-{name}" for name in HIERAS),
    "sam3",
]


def build(name: str) -> PreTrainedModel:
    """A SAM of a published shape, without weights."""
    if name == "sam3":
        return Sam3TrackerModel(Sam3TrackerConfig())
    family, _, size = name.partition("-")
    if family == "sam2.1":
        return build_hiera(size, 1024)
    if size.startswith("hq-"):
        vision = SIZES[size.removeprefix("hq-")]
        return SamHQModel(SamHQConfig(vision_config=vision, mask_decoder_config={"vit_dim": vision["hidden_size"]}))
    return SamModel(SamConfig(vision_config=SIZES[size]))


def row(name: str) -> list[str]:
    with torch.device("meta"):
        model = build(name)
    family, shape = family_of(model), encoder_shape(model)
    encoder, decoder = find_vision_encoder(model), find_mask_decoder(model)
    pixels = torch.empty(1, 3, shape.image_size, shape.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(pixels)
    trained = sum(decoder.get_parameter(part).numel() for part in family.reached_parameters(decoder))
    millions = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model, encoder))
    license_name = family.license.get("license_name", family.license["license"])
    cells = [f"{shape.image_size}", f"{4 * shape.grid}", *(f"{value:.1f}" for value in millions), f"{trained:,}"]
    return [name, *cells, f"{counter.get_total_flops() / 1e12:.2f}", license_name]


def main() -> None:
    header = [
        "SAM",
        "input",
        "mask",
        "parameters, M",
        "of the encoder, M",
        "trained in the decoder",
        "TFLOP",
        "licence",
    ]
    note = "Input and mask: pixels a side. TFLOP: of the encoder's forward of one image, a multiplication and an "
    note += "addition counted as two. Licence: of the weights as their authors publish them."
    publish("The SAMs", f"{table(header, [row(name) for name in SAMS])}\n\n{note}")


if __name__ == "__main__":
    main()
