"""Pre-train `tiny`, the embedded SAM, on images that this recipe draws itself.

    python recipes/pretrain_tiny.py --output_dir runs/tiny --max_steps 3000
    python recipes/evaluate_tiny.py --model runs/tiny/model --data DOMAINS

Two traps decide the form of it. With usual initialisation the decoder stays for thousands of steps on the plateau
where every mask is empty: hence query and key projections that start equal in its cross-attentions, and positives that
weigh more at first. And trained on prompts alone the encoder goes blind, the net learns "box -> blob": hence a dense
loss on the encoder's own output, alone for the first steps and beside the others all along.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_images.pool import draw_pool
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import HfArgumentParser, SamConfig, SamModel

from hf_sam_adapt.processing import SamAdaptProcessor
from hf_sam_adapt.prompts import degrade


SIDE, GRID, MASK = 256, 16, 64  # pixels of input, tokens and mask logits a side
WIDTH = 128  # channels of image embedding and decoder
SMALLEST = 24  # pixels of an object that a prompt may name
PROMPT_WEIGHT = 2.0  # of the prompted loss beside the dense one
KINDS = {"box": 0.45, "point": 0.25, "mask": 0.05, "none": 0.25}


@dataclass
class Arguments:
    """Command line."""

    output_dir: str = field(default="runs/tiny", metadata={"help": "State, log and the exported model."})
    pool: str = field(default="runs/tiny_pool", metadata={"help": "Folder of the drawn scenes, drawn if absent."})
    shards: int = field(default=51, metadata={"help": "Files of 250 scenes."})
    workers: int = field(default=2, metadata={"help": "Processes that draw the pool."})
    num_workers: int = field(default=1, metadata={"help": "Processes that load batches while the model trains."})
    max_steps: int = field(
        default=3000, metadata={"help": "Optimizer steps; the learning rate falls to 0 at the last."}
    )
    stop_at: int | None = field(default=None, metadata={"help": "Leave after this step, to be resumed later."})
    dense_steps: int = field(default=300, metadata={"help": "First steps, with the dense loss alone."})
    batch_size: int = field(default=16, metadata={"help": "Scenes a step."})
    prompts_per_image: int = field(default=4, metadata={"help": "Objects of a scene that are prompted."})
    dense_per_image: int = field(default=8, metadata={"help": "Objects of a scene in the dense loss."})
    learning_rate: float = field(default=1.2e-3, metadata={"help": "Highest learning rate."})
    save_every: int = field(default=200, metadata={"help": "Steps between two saved states."})
    seed: int = field(default=1, metadata={"help": "Series of scenes, initialisation and order."})


def tiny_config() -> SamConfig:
    """3.8 M parameters: six layers of 192, two of them global, and a decoder of SAM's form at half its width."""
    vision = {"hidden_size": 192, "mlp_dim": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
    vision |= {"window_size": 8, "global_attn_indexes": [2, 5], "output_channels": WIDTH, "num_pos_feats": WIDTH // 2}
    size = {"image_size": SIDE, "patch_size": SIDE // GRID}
    return SamConfig(
        vision_config=vision | size,
        prompt_encoder_config={"hidden_size": WIDTH, "mask_input_channels": 16} | size,
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 4 * WIDTH,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": WIDTH,
        },
    )


@torch.no_grad()
def initialise(model: SamModel) -> None:
    """Xavier, N(0, 1) for tokens and point embeddings, and equal orthogonal query and key in the cross-attentions."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(float(name.endswith("weight")))
        elif name.endswith("bias") or "rel_pos" in name:
            parameter.zero_()
        elif "pos_embed" in name:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif any(part in name for part in ("token", "point_embed", "not_a_point", "positional_embedding")) and (
            parameter.shape[0] <= 4
        ):
            parameter.normal_()
        elif "no_mask_embed" in name:
            parameter.normal_(std=0.5)
        elif "upscale_conv" in name:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))
    for name, module in model.mask_decoder.named_modules():
        if hasattr(module, "q_proj") and "self_attn" not in name:
            nn.init.orthogonal_(module.q_proj.weight, gain=1.5)
            module.k_proj.weight.copy_(module.q_proj.weight)
            module.q_proj.bias.zero_()
            module.k_proj.bias.zero_()


class Scenes:
    """Scenes of a pool, turned, cropped and given other aspect ratios.

    Args:
        paths: files of `draw_pool`.
    """

    def __init__(self, paths: list[Path]):
        self.shards = [np.load(path, mmap_mode="r") for path in paths]
        self.mean = 255 * torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        self.std = 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One scene: image (3, 256, 256), `count` object masks (count, 256, 256), salient class (256, 256); floats."""
        while True:
            image, objects, salient, parts = self._scene(rng)
            candidates = [
                [
                    layer == number
                    for number, area in zip(*torch.unique(layer, return_counts=True))
                    if number and area >= SMALLEST
                ]
                for layer in (objects, parts)
            ]
            if any(candidates):
                break
        masks = []
        for _ in range(count):
            group = candidates[0] if candidates[0] and (not candidates[1] or rng.random() < 0.6) else candidates[1]
            masks.append(group[rng.integers(len(group))])
        return image, torch.stack(masks).float(), salient

    def _scene(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        shard = self.shards[rng.integers(len(self.shards))]
        record = np.array(shard[rng.integers(len(shard))])  # (256, 256, 6)
        record = record[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        if rng.random() < 0.5:
            record = record.transpose(1, 0, 2)
        if rng.random() < 0.35:
            side = int(SIDE / rng.uniform(1.1, 2.0))
            top, left = rng.integers(0, SIDE - side, 2)
            record = record[top : top + side, left : left + side]
        height = width = SIDE
        if rng.random() < 0.4:
            short = int(SIDE * rng.uniform(0.55, 0.98))
            height, width = (short, SIDE) if rng.random() < 0.7 else (SIDE, short)
        planes = torch.from_numpy(np.ascontiguousarray(record)).permute(2, 0, 1)[None].float()  # (1, 6, h, w)
        image = F.interpolate(planes[:, :3], size=(height, width), mode="bilinear", antialias=True)[0]
        labels = F.interpolate(planes[:, 3:], size=(height, width), mode="nearest")[0]
        padding = (0, SIDE - width, 0, SIDE - height)
        return F.pad((image - self.mean) / self.std, padding), *F.pad(labels, padding)

    def batch(self, rng: np.random.Generator, size: int, count: int):
        """Images (B, 3, 256, 256), masks (B, P, 256, 256), salient class (B, 1, 256, 256)."""
        images, masks, salient = zip(*(self.draw(rng, count) for _ in range(size)))
        return torch.stack(images), torch.stack(masks), torch.stack(salient)[:, None]


def draw_prompts(masks: torch.Tensor, kind: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Arguments of SAM's prompt encoder for masks (B, P, 256, 256): boxes, points, or one degraded mask an image."""
    objects = [mask.numpy() > 0.5 for mask in masks.flatten(0, 1)]
    if kind == "box":
        boxes = torch.stack([_box(mask, rng) for mask in objects])
        return {"input_boxes": boxes.reshape(*masks.shape[:2], 4)}
    if kind == "point":
        points = torch.stack([_point(mask, rng) for mask in objects]).reshape(*masks.shape[:2], 1, 2)
        return {"input_points": points, "input_labels": torch.ones(points.shape[:3], dtype=torch.int64)}
    degraded = torch.stack([torch.from_numpy(degrade(mask[0].numpy() > 0.5, rng)).float() for mask in masks])[:, None]
    return {"input_masks": 20 * (F.adaptive_avg_pool2d(degraded, MASK) > 0.5).float() - 10}


def _box(mask: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """The tight box, in a third of the cases with its sides moved by up to an eighth of the object."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    if rng.random() < 0.35:
        extent = np.tile([box[2] - box[0], box[3] - box[1]], 2)
        box = box + 0.06 * extent * rng.normal(size=4).clip(-2, 2)
    return torch.from_numpy(box.clip(0, SIDE - 1)).float()


def _point(mask: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """(x, y): the pixel farthest from the border, or any pixel of the object."""
    from scipy import ndimage

    if rng.random() < 0.5:
        distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(distance.argmax(), distance.shape)
    else:
        rows, columns = np.nonzero(mask)
        pick = rng.integers(len(rows))
        row, column = rows[pick], columns[pick]
    return torch.tensor([float(column), float(row)])


class Steps(Dataset):
    """What step s trains on, drawn from (seed, s) alone: so a resumed run sees what the straight one would.

    Each item is a dict: `images` (B, 3, 256, 256); `cover`, the covered share of each mask pixel for the objects
    (B, P, 64, 64), the first `prompts_per_image` of which are prompted; `salient` (B, 1, 64, 64); `kind`; `prompts`.
    """

    def __init__(self, scenes: Scenes, arguments: Arguments):
        self.scenes, self.arguments = scenes, arguments

    def __len__(self) -> int:
        return self.arguments.max_steps

    def __getitem__(self, step: int) -> dict:
        arguments = self.arguments
        rng = np.random.default_rng([arguments.seed, step])
        images, masks, salient = self.scenes.batch(rng, arguments.batch_size, arguments.dense_per_image)
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        prompted = masks[:, : arguments.prompts_per_image]
        prompts = {} if kind == "none" else draw_prompts(prompted, kind, rng)
        cover, salient = F.adaptive_avg_pool2d(masks, MASK), F.adaptive_avg_pool2d(salient, MASK)
        return {"images": images, "cover": cover, "salient": salient, "kind": kind, "prompts": prompts}


class DenseHead(nn.Module):
    """The auxiliary task: from an object's mean embedding find its pixels among all others.

    Args:
        width: channels of the image embedding.
    """

    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width // 8))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, decoder: nn.Module, embedding: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
        """Logits (B, P, 64, 64) from the embedding (B, C, 16, 16) and the masks' cover (B, P, 64, 64)."""
        up = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(embedding)))
        up = decoder.activation(decoder.upscale_conv2(up)).float()  # (B, C / 8, 64, 64)
        cover = F.adaptive_avg_pool2d(cover, GRID)
        mean = torch.einsum("bchw,bphw->bpc", embedding.float(), cover) / cover.sum((2, 3))[..., None].clamp(min=1e-3)
        return torch.einsum("bpc,bchw->bphw", self.head(mean).float(), up) + self.bias

    @staticmethod
    def loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Balanced BCE + Dice inside the somewhat enlarged boxes; truth (B, P, 64, 64) in {0, 1}."""
        region = F.max_pool2d(_box_of(truth > 0.5), 9, 1, 4)
        positive, negative = truth * region, (1 - truth) * region
        weight = 0.5 * (_share(positive) + _share(negative))
        bce = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).sum((2, 3))
        return (bce + _dice(logits.sigmoid() * region, positive)).mean()


def _box_of(truth: torch.Tensor) -> torch.Tensor:
    """The filled bounding boxes of masks bool (B, P, h, w): float (B, P, h, w)."""
    return truth.any(3)[..., None].float() * truth.any(2)[..., None, :].float()


def _share(weight: torch.Tensor) -> torch.Tensor:
    return weight / weight.sum((-2, -1), keepdim=True).clamp(min=1)


def _dice(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    both = (probability * truth).sum((-2, -1))
    return 1 - (2 * both + 1) / ((probability + truth).sum((-2, -1)) + 1)


def all_masks(sam: SamModel, embedding: torch.Tensor, prompts: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """All four masks (B, P, 4, 64, 64) and IoU estimates (B, P, 4) in one pass; `SamModel` returns one or three."""
    names = ("input_points", "input_labels", "input_boxes", "input_masks")
    with torch.autocast(
        embedding.device.type, enabled=False
    ):  # in bf16 a coordinate is off by up to a pixel, and its sine by more
        sparse, dense = sam.prompt_encoder(**{name: prompts.get(name) for name in names})
        position = sam.get_image_wide_positional_embeddings().repeat(len(embedding), 1, 1, 1)
    found = {}

    def keep(module, arguments, output):
        found["all"] = output

    decoder = sam.mask_decoder
    tokens = []
    hooks = [
        mlp.register_forward_hook(lambda m, a, out: tokens.append(out)) for mlp in decoder.output_hypernetworks_mlps
    ]
    hooks.append(decoder.upscale_conv2.register_forward_hook(keep))
    hooks.append(decoder.iou_prediction_head.register_forward_hook(lambda m, a, out: found.update(iou=out)))
    decoder(
        image_embeddings=embedding,
        image_positional_embeddings=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense.expand(len(embedding), -1, -1, -1),
        multimask_output=False,
    )
    for hook in hooks:
        hook.remove()
    hyper = torch.stack(tokens, dim=2)  # (B, P, 4, C / 8)
    up = decoder.activation(found["all"]).unflatten(0, hyper.shape[:2])  # (B, P, C / 8, 64, 64)
    return torch.einsum("bpmc,bpchw->bpmhw", hyper, up), found["iou"]


def prompt_loss(
    masks: torch.Tensor, estimates: torch.Tensor, truth: torch.Tensor, used: torch.Tensor, balance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """SAM's loss: focal + Dice on mask token 0 and on the best of the other three, squared error of the IoU head.

    Args:
        masks: logits (B, P, 4, 64, 64); estimates: (B, P, 4).
        truth: covered share of each mask pixel (B, P, 64, 64).
        used: 1 for the images that count (B,).
        balance: from 1, a BCE in which the object, all else, and what is near it have fixed shares, to 0, focal.

    Returns:
        The loss, and the mean IoU of mask token 0.
    """
    near = F.max_pool2d(_box_of(truth > 0.5), 9, 1, 4)
    weight = 0.5 * _share(truth) + 0.25 * _share(1 - truth) + 0.25 * _share((1 - truth) * near)
    truth, weight = truth[:, :, None].expand_as(masks), weight[:, :, None]
    logits, probability = masks.float(), masks.float().sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = 1 - probability * truth - (1 - probability) * (1 - truth)
    losses = _dice(probability, truth) + balance * (bce * weight).sum((-2, -1))  # (B, P, 4)
    losses = losses + (1 - balance) * 4 * (bce * wrong).mean((-2, -1))
    with torch.no_grad():
        predicted, true = logits > 0, truth > 0.5
        iou = (predicted & true).sum((-2, -1)) / (predicted | true).sum((-2, -1)).clamp(min=1)
    share = (used / used.sum().clamp(min=1))[:, None] / masks.shape[1]
    mask_loss = (share * (losses[..., 0] + 0.5 * losses[..., 1:].min(-1).values)).sum()
    iou_loss = (share * (estimates.float() - iou).square().mean(-1)).sum()
    return mask_loss + iou_loss, (share * iou[..., 0]).sum()


class Pretraining:
    """Model, averaged weights and optimizer, with a state on disk; step s draws from (seed, s) alone."""

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        self.folder = Path(arguments.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(arguments.seed)
        config = tiny_config()
        config._attn_implementation = config.vision_config._attn_implementation = (
            "eager"  # SDPA with a bias is slow here
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.sam, self.dense = SamModel(config), DenseHead(WIDTH)
        initialise(self.sam)
        self.sam.to(self.device)
        self.dense.to(self.device)
        self.sam.shared_image_embedding.positional_embedding.requires_grad_(False)
        self.average = {name: value.detach().clone() for name, value in self.sam.named_parameters()}
        self.trained = [p for module in (self.sam, self.dense) for p in module.parameters() if p.requires_grad]
        groups = [{"params": [p for p in self.trained if p.ndim > 1], "weight_decay": 0.02}]
        groups += [{"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.step = 0
        self.figures: dict[str, list[torch.Tensor]] = {}

    def save(self) -> None:
        """Write the state; `progress.json` comes last and names the files of its step."""
        name = f"step_{self.step}"
        weights = {f"sam.{n}": p for n, p in self.sam.named_parameters()}
        weights |= {f"average.{n}": p for n, p in self.average.items()}
        weights |= {f"dense.{n}": p for n, p in self.dense.named_parameters()}
        save_file({n: p.detach().contiguous() for n, p in weights.items()}, self.folder / f"{name}.safetensors")
        torch.save(self.optimizer.state_dict(), self.folder / f"{name}.optimizer.pt")
        partial = self.folder / "progress.json.tmp"
        partial.write_text(json.dumps({"step": self.step, "state": name}))
        partial.replace(self.folder / "progress.json")
        for old in self.folder.glob("step_*"):
            if not old.name.startswith(name + "."):
                old.unlink()

    def resume(self) -> None:
        """Continue from the state in the output folder, if there is one."""
        progress = self.folder / "progress.json"
        if not progress.exists():
            return
        found = json.loads(progress.read_text())
        weights = load_file(self.folder / f"{found['state']}.safetensors")
        with torch.no_grad():
            for prefix, module in (("sam", self.sam), ("dense", self.dense)):
                for name, parameter in module.named_parameters():
                    parameter.copy_(weights[f"{prefix}.{name}"])
        self.average = {name: weights[f"average.{name}"] for name in self.average}
        state = torch.load(self.folder / f"{found['state']}.optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(state)
        self.step = found["step"]
        print(f"resumed at step {self.step}", flush=True)

    def train_step(self, item: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on an item of `Steps`; the loss and the deviation of the embedding over the images."""
        arguments = self.arguments
        done = self.step / arguments.max_steps
        for group in self.optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(1, (self.step + 1) / 200) * (1 - done)
        images, cover = item["images"].to(self.device), item["cover"].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            embedding = self.sam.vision_encoder(images).last_hidden_state
            dense = self.dense(self.sam.mask_decoder, embedding, cover)
        loss = DenseHead.loss(dense.float(), (cover > 0.5).float())
        after = self.step - arguments.dense_steps
        if after >= 0:
            kind, truth = item["kind"], cover[:, : arguments.prompts_per_image]
            used = torch.ones(len(images), device=self.device)
            if kind == "none":
                truth = item["salient"].to(self.device)
                used = (truth.sum((1, 2, 3)) * (SIDE // MASK) ** 2 >= SMALLEST).float()
            elif kind == "mask":
                truth = truth[:, :1]
            prompts = {name: value.to(self.device) for name, value in item["prompts"].items()}
            with torch.autocast(self.device.type, torch.bfloat16):
                logits, estimates = all_masks(self.sam, embedding, prompts)
            prompted, iou = prompt_loss(logits, estimates, truth, used, max(0.0, 1 - after / 1500))
            loss = loss + PROMPT_WEIGHT * prompted
            self.figures.setdefault(kind, []).append(iou)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(0.998, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            for name, parameter in self.sam.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        return loss.detach(), embedding.detach().float().std(0).mean()

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a model folder, fp16 safetensors."""
        model = SamModel(tiny_config())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.average[name])
        model.half().save_pretrained(folder)
        config = folder / "config.json"
        # The weights are stored as fp16 to be small; a CPU computes in the dtype that the config names.
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
        SamAdaptProcessor(image_size=SIDE, patch_size=SIDE // GRID, resize="pad").save_pretrained(folder)


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    scenes = Scenes(draw_pool(Path(arguments.pool), arguments.seed, arguments.shards, arguments.workers))
    run = Pretraining(arguments)
    run.resume()
    start, first = time.time(), run.step
    last = arguments.stop_at or arguments.max_steps
    items = DataLoader(
        Steps(scenes, arguments), batch_size=None, sampler=range(first, last), num_workers=arguments.num_workers
    )
    for item in items:
        loss, deviation = run.train_step(item)
        if run.step % 50 == 0:
            seconds = (time.time() - start) / (run.step - first)
            means = {kind: round(torch.stack(v[-40:]).mean().item(), 3) for kind, v in sorted(run.figures.items())}
            print(
                f"step {run.step} {seconds:.2f} s/step loss {loss:.3f} deviation {deviation:.3f} IoU {means}",
                flush=True,
            )
        if run.step % arguments.save_every == 0 or run.step == last:
            run.save()
            run.export(run.folder / "model")


if __name__ == "__main__":
    main()
