"""What routing costs: a batch of mixed domains through a pool, against the same batch with one domain for all.

In every round, in alternating order: `one domain` (the pool, domain named, the cheapest way that there is), `named`
(a list with a domain an image), `routed` (the router chooses), and the published way: per image one encoder pass with
the tokens attending in both directions, then a second one for the mask. Every image has a box. Random weights in the
adapters; the pool's domains are told apart by colours that are drawn for it.

    python benchmarks/routed_batch.py
    python benchmarks/routed_batch.py --model vit_b --image_size 512 --dtype bf16 --domains 2 16 --rounds 3
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from results import publish, table
from step_table import BACKBONES, build_sam
from transformers import SamModel

from hf_sam_adapt import ModaConfig, ModaModel, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.sam.attention import use_fast_attention


INNER = {
    "hq": lambda: SamDecoderConfig(decoder="hq", init_weights=False),
    "decoder": lambda: SamDecoderConfig(init_weights=False),
    "sam_adapter": lambda: SamAdapterConfig(init_weights=False),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("one domain", "named", "routed", "published")


def build_pool(sam: SamModel, inner: str, domains: int, router: str, args: argparse.Namespace) -> ModaModel:
    """A pool with random adapters, whose router is fitted on images of one colour a domain."""
    torch.manual_seed(0)
    config = ModaConfig(inner=INNER[inner](), router=router, reject=0.0)
    pool = ModaModel(sam.to(args.device, DTYPES[args.dtype]), config)
    for number in range(domains):
        pool.add_domain(f"domain{number}")
        pool.observe(images(pool, [number] * 8, seed=number))
        pool.finish_domain()
    return pool.eval()


def images(pool: ModaModel, domains: list[int], seed: int) -> torch.Tensor:
    """Noise (B, 3, S, S) on the colour of each image's domain."""
    side = pool.model.vision_encoder.config.image_size
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(len(pool.domains) + 16, 3, 1, 1, generator=torch.Generator().manual_seed(1))[domains]
    noise = 0.3 * torch.randn(len(domains), 3, side, side, generator=generator)
    return (noise + 2 * colours).to(pool.model.device, pool.model.dtype)


@torch.no_grad()
def published(pool: ModaModel, pixels: torch.Tensor, boxes: torch.Tensor) -> None:
    """One image after the other, two encoder passes each."""
    for pixel_values, box in zip(pixels.split(1), boxes.split(1)):
        name = pool.route(pixel_values).domains[0]
        pool(pixel_values=pixel_values, input_boxes=box, domain=name)


def compare(inner: str, domains: int, args: argparse.Namespace) -> list[str]:
    """Cells of a row: median milliseconds of each way, and its ratio to one domain for all."""
    batch, rounds, device = args.batch, args.rounds, args.device
    torch.manual_seed(0)
    sam = build_sam(args.model, args.image_size)
    use_fast_attention(sam)
    pool, official = (build_pool(copy.deepcopy(sam), inner, domains, way, args) for way in ("probe", "joint"))
    side = pool.model.vision_encoder.config.image_size
    numbers = [index % domains for index in range(batch)]
    boxes = torch.tensor([[[0.2, 0.2, 0.7, 0.8]]], device=device).expand(batch, 1, 4) * side
    names = [pool.domains[number] for number in numbers]

    def run(pixels: torch.Tensor, domain: str | list[str]) -> None:
        with torch.no_grad():
            pool(pixel_values=pixels, input_boxes=boxes, domain=domain)

    ways: dict[str, Callable[[torch.Tensor], None]] = {
        "one domain": lambda pixels: run(pixels, names[0]),
        "named": lambda pixels: run(pixels, names),
        "routed": lambda pixels: run(pixels, "auto"),
        "published": lambda pixels: published(official, pixels, boxes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 2):
        pixels = images(pool, numbers, seed=1000 + number)
        for name in WAYS if number % 2 else WAYS[::-1]:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            ways[name](pixels)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    accuracy = statistics.mean(a == b for a, b in zip(pool.route(pixels).domains, names))
    cells = [inner, str(domains), f"{1000 * statistics.median(seconds['one domain'][2:]):.0f}"]
    for name in WAYS[1:]:
        ratios = [b / a for a, b in zip(seconds["one domain"][2:], seconds[name][2:])]
        low, middle, high = statistics.quantiles(ratios)
        cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    return [*cells, f"{accuracy:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", *BACKBONES), default="tiny", help="random weights but for tiny")
    parser.add_argument("--image_size", type=int, default=1024, help="pixels, but for tiny (default: 1024)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of SAM's weights (default: fp32)")
    parser.add_argument("--batch", type=int, default=16, help="images (default: 16)")
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 4, 8, 16], help="sizes of the pool")
    parser.add_argument("--inner", nargs="+", choices=INNER, default=list(INNER), help="methods of the domains")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [compare(inner, domains, args) for inner in args.inner for domains in args.domains]
    header = ["inner", "domains", "one domain, ms", "named / one", "routed / one", "published / one", "routed right"]
    note = (
        f"{args.model}{f' at {args.image_size} pixels' if args.model != 'tiny' else ''}, {args.batch} images, "
        f"{torch.get_num_threads()} threads, {args.dtype}. Medians and quartiles of {args.rounds} rounds; ratios "
        "within a round."
    )
    publish("Routed inference of a mixed batch", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
