"""Which head, which feature and which threshold MoDA's router should have: `tiny` on real domains.

Heads and features are compared by cross-validation on the training images; the test images are read for what was
chosen. Each image is encoded once a seed, and all that is compared is read out of that pass.

    python benchmarks/router_heads.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from results import publish, table

from hf_sam_adapt import load_tiny_sam
from hf_sam_adapt.tuners.moda.heads import HEADS
from hf_sam_adapt.tuners.moda.router import DomainRouter
from hf_sam_adapt.tuners.moda.tokens import TokenProbe, global_tokens, joint_tokens


DOMAINS = ("polyp", "nuclei", "magnetic_tile", "road_aerial", "em_neuron", "camouflage", "shadow")
SETS = {"without shadow": DOMAINS[:-1], "with shadow": DOMAINS}
UNKNOWN = "camvid"
PUBLISHED, CHOSEN = "joint: token 0", "probe: a token alone + embedding"
FOLDS = 5
# (domain, split, seed) -> name of the feature -> (N, D)
Features = dict[tuple[str, str, int], dict[str, torch.Tensor]]


@torch.no_grad()
def read_features(encoder: torch.nn.Module, images: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """All compared features of images (B, 3, S, S): name -> (B, D)."""
    tokens = global_tokens(encoder.config.hidden_size, seed=seed)
    blocks, states = [], []
    with TokenProbe(encoder, tokens) as probe:
        # Registered after the probe's own hooks, so they run after them.
        handles = [
            layer.register_forward_hook(lambda _m, _a, output: blocks.append(output)) for layer in encoder.layers
        ]
        handles += [layer.register_forward_hook(lambda *_: states.append(probe.tokens)) for layer in encoder.layers]
        encoder(images)
    for handle in handles:
        handle.remove()
    with TokenProbe(encoder, tokens[:, :1]) as alone:
        encoder(images)
    joint, neck = joint_tokens(encoder, images, tokens)
    embedding, joint_embedding = channel_statistics(probe.embedding.flatten(2)), channel_statistics(neck.flatten(2))
    return {
        "probe: token 0": probe.tokens[:, 0],
        "probe: mean of the tokens": probe.tokens.mean(1),
        "probe: all ten tokens": probe.tokens.flatten(1),
        "probe: token 0 of all blocks": torch.cat([state[:, 0] for state in states], 1),
        "probe: token 0 + embedding": torch.cat([probe.tokens[:, 0], embedding], 1),
        "probe: a token alone": alone.tokens[:, 0],
        CHOSEN: torch.cat([alone.tokens[:, 0], embedding], 1),
        PUBLISHED: joint[:, 0],
        "joint: token 0 + embedding": torch.cat([joint[:, 0], joint_embedding], 1),
        "embedding": embedding,
        "all blocks": torch.cat([channel_statistics(x.flatten(1, 2).transpose(1, 2)) for x in blocks], 1),
    }


def channel_statistics(channels: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation (B, 2 C) of channels (B, C, N)."""
    return torch.cat([channels.mean(2), channels.std(2)], 1)


def collect(data: Path, seeds: list[int]) -> Features:
    sam, processor = load_tiny_sam()
    found: Features = {}
    for domain in (*DOMAINS, UNKNOWN):
        for split in ("train", "test"):
            files = sorted((data / domain / split / "images").iterdir())
            parts = defaultdict(lambda: defaultdict(list))
            for start in range(0, len(files), 16):
                batch = [Image.open(file).convert("RGB") for file in files[start : start + 16]]
                images = processor(batch)["pixel_values"]
                for seed in seeds:
                    for name, values in read_features(sam.vision_encoder, images, seed).items():
                        parts[seed][name].append(values)
            for seed in seeds:
                found[domain, split, seed] = {name: torch.cat(values) for name, values in parts[seed].items()}
            print(domain, split, len(files), flush=True)
    return found


def cross_validated(features: Features, domains: tuple[str, ...], seed: int, source: str, head_name: str, keep: int):
    """Accuracy on held-out training images of a head fitted on at most `keep` images of each domain."""
    generator = torch.Generator().manual_seed(seed)
    parts = [features[domain, "train", seed][source] for domain in domains]
    parts = [part[torch.randperm(len(part), generator=generator)] for part in parts]
    hits = total = 0
    for fold in range(FOLDS):
        folds = [torch.arange(len(part)) % FOLDS == fold for part in parts]
        known = [part[~out][:keep] for part, out in zip(parts, folds)]
        held = [part[out] for part, out in zip(parts, folds)]
        head = HEADS[head_name]()
        head.fit(torch.cat(known), labels_of(known), len(domains))
        hits += (head(torch.cat(held)).argmax(1) == labels_of(held)).sum().item()
        total += sum(map(len, held))
    return hits / total


def labels_of(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))


def fitted(features: Features, domains: tuple[str, ...], seed: int, source: str, head: str, reject: float):
    router = DomainRouter(1, image_size=256, head=head, reject=reject, seed=seed)
    for domain in domains:
        router.observe(domain, features[domain, "train", seed][source])
    router.fit()
    return router


def comparison(features: Features, seeds: list[int]) -> str:
    rows = []
    for source in features[DOMAINS[0], "train", seeds[0]]:
        cells = []
        for head in HEADS:
            values = [
                statistics.mean(cross_validated(features, domains, seed, source, head, 256) for seed in seeds)
                for domains in SETS.values()
            ]
            cells.append(" / ".join(f"{value:.3f}" for value in values))
        width = features[DOMAINS[0], "train", seeds[0]][source].shape[1]
        rows.append([source, str(width), *cells])
        print(rows[-1], flush=True)
    return table(["feature", "D", *HEADS], rows)


def kept_images(features: Features, seeds: list[int]) -> str:
    counts = (10, 25, 50, 100, 256)
    rows = []
    for source, head in ((CHOSEN, "ridge"), (CHOSEN, "mahalanobis"), (PUBLISHED, "linear")):
        cells = []
        for keep in counts:
            values = [
                statistics.mean(cross_validated(features, domains, seed, source, head, keep) for seed in seeds)
                for domains in SETS.values()
            ]
            cells.append(" / ".join(f"{value:.3f}" for value in values))
        rows.append([f"{source}, {head}", *cells])
    return table(["kept images a domain", *map(str, counts)], rows)


def tested(features: Features, seeds: list[int]) -> str:
    """Accuracy on the test images, none refused, and the confusion of the chosen router."""
    rows, confusion = [], torch.zeros(len(DOMAINS), len(DOMAINS))
    for source, head in ((CHOSEN, "ridge"), ("probe: token 0", "ridge"), (PUBLISHED, "ridge"), (PUBLISHED, "linear")):
        cells = []
        for domains in SETS.values():
            accuracies = []
            for seed in seeds:
                router = fitted(features, domains, seed, source, head, 0)
                parts = [features[domain, "test", seed][source] for domain in domains]
                labels, found = labels_of(parts), router.route(torch.cat(parts))
                accuracies.append((found == labels).float().mean().item())
                if (source, head, domains) == (CHOSEN, "ridge", DOMAINS):
                    confusion.index_put_((labels, found), torch.tensor(1.0), accumulate=True)
            spread = f" ± {statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
            cells.append(f"{statistics.mean(accuracies):.3f}{spread}")
        rows.append([f"{source}, {head}", *cells])
    confusion = confusion / confusion.sum(1, keepdim=True)
    lines = [[name, *(f"{value:.3f}" for value in line)] for name, line in zip(DOMAINS, confusion.tolist())]
    return f"{table(['test images', *SETS], rows)}\n\n{table(['true / routed to', *DOMAINS], lines)}"


def refused(features: Features, seeds: list[int]) -> str:
    """Share of test images sent to plain SAM: of the known domains, and of one that the router has not seen."""
    cases = [(f"{UNKNOWN}, {name}", domains, UNKNOWN) for name, domains in SETS.items()]
    cases += [(out, tuple(name for name in DOMAINS if name != out), out) for out in DOMAINS]
    rows = []
    for name, domains, unknown in cases:
        cells = []
        for reject in (0.01, 0.02, 0.05):
            shares = []
            for seed in seeds:
                router = fitted(features, domains, seed, CHOSEN, "ridge", reject)
                known = torch.cat([features[domain, "test", seed][CHOSEN] for domain in domains])
                shares.append(
                    [(router.route(x) < 0).float().mean() for x in (features[unknown, "test", seed][CHOSEN], known)]
                )
            cells.append(" / ".join(f"{value:.3f}" for value in torch.tensor(shares).mean(0).tolist()))
        rows.append([name, *cells])
    return table(["unknown domain", "reject 0.01", "reject 0.02", "reject 0.05"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each domain")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the tokens")
    args = parser.parse_args()
    features = collect(args.data, args.seeds)
    body = f"""Five-fold cross-validation on the training images, mean over {len(args.seeds)} seeds; accuracy
without / with `shadow`. `embedding` and `all blocks`: mean and standard deviation of the channels.

{comparison(features, args.seeds)}

The same by the number of features that are kept; 10 is the published buffer.

{kept_images(features, args.seeds)}

{tested(features, args.seeds)}

Test images sent to plain SAM, of the unknown domain / of the known ones:

{refused(features, args.seeds)}"""
    publish("Router: heads, features and threshold", body)


if __name__ == "__main__":
    main()
