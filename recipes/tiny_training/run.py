"""The pre-training itself: model, averaged weights and optimizer, with a state on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.image_embeddings import ImageEmbeddings
from hf_sam_adapt.sam.processing import SamAdaptProcessor

from .losses import DenseHead, all_masks, embed_prompts, imitation_loss, neighbourhood, prompt_loss
from .model import ARCHITECTURES, GRID, SIDE, WIDTH, encode, new_model, teacher_of
from .prompts import correct
from .steps import HeldBack


PROMPT_WEIGHT = 2.0  # of the prompted loss beside the dense one
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WARM_UP = 200  # steps


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products: bf16 pays on a GPU and on CPUs that multiply it."""
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"--precision {name}: one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


class Pretraining:
    """Model, averaged weights and optimizer, with a state on disk; step s draws from (seed, s) alone.

    Args:
        arguments: the recipe's command line.
        sources: those trained on; task number k is the k-th.
        held_back: photographs to look at from time to time, or None.
    """

    def __init__(self, arguments, sources: list[str], held_back: HeldBack | None):
        self.arguments, self.held_back = arguments, held_back
        self.folder = Path(arguments.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(arguments.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = precision_of(arguments.precision, self.device)
        self.sam, self.dense = (
            new_model(arguments.architecture, arguments.init).to(self.device),
            DenseHead(WIDTH).to(self.device),
        )
        self.teacher = teacher_of(arguments.architecture, arguments.init)
        self.tasks = nn.Embedding(len(sources) + 1, WIDTH).to(self.device)
        nn.init.normal_(self.tasks.weight, std=0.1)
        self.modules = {"sam": self.sam, "dense": self.dense, "tasks": self.tasks}
        self.average = {name: value.detach().clone() for name, value in self.sam.named_parameters()}
        self.trained = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        groups = [{"params": [p for p in self.trained if p.ndim > 1], "weight_decay": 0.02}]
        groups += [{"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.step, self.best = 0, -1.0
        self.figures: dict[str, list[float]] = {}

    def autocast(self) -> torch.autocast:
        """bf16 where it pays."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def save(self) -> None:
        """Write the state; `progress.json` comes last and names the files of its step."""
        name = f"step_{self.step}"
        weights = {f"average.{n}": p for n, p in self.average.items()}
        for prefix, module in self.modules.items():
            weights |= {f"{prefix}.{n}": p for n, p in module.named_parameters()}
        save_file({n: p.detach().contiguous() for n, p in weights.items()}, self.folder / f"{name}.safetensors")
        torch.save(self.optimizer.state_dict(), self.folder / f"{name}.optimizer.pt")
        partial = self.folder / "progress.json.tmp"
        partial.write_text(json.dumps({"step": self.step, "state": name, "best": self.best}))
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
            for prefix, module in self.modules.items():
                for name, parameter in module.named_parameters():
                    parameter.copy_(weights[f"{prefix}.{name}"])
        self.average = {name: weights[f"average.{name}"].to(self.device) for name in self.average}
        state = torch.load(self.folder / f"{found['state']}.optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(state)
        self.step, self.best = found["step"], found["best"]
        print(f"resumed at step {self.step}", flush=True)

    def done(self) -> float:
        """The share of the present schedule that lies behind."""
        start = self.arguments.schedule_start
        return max(0, self.step - start) / max(1, self.arguments.max_steps - start)

    def learning_rate(self) -> float:
        """Linear warm-up, constant, then linearly down to 0: so a run may be made longer until its decay begins."""
        warm = min(1.0, (self.step - self.arguments.schedule_start + 1) / WARM_UP)
        return self.arguments.learning_rate * warm * min(1.0, (1 - self.done()) / self.arguments.decay)

    def train_step(self, item: dict) -> None:
        """One step on an item of `Steps`."""
        arguments = self.arguments
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        images, cover = item["images"].to(self.device), item["cover"].to(self.device)
        with self.autocast():
            embedding = encode(self.sam, images)
        if self.teacher is not None and self.step < arguments.dense_steps:
            loss = imitation_loss(embedding, self._taught(images))
        else:
            with self.autocast():
                dense = self.dense(self.sam.mask_decoder, embedding, cover)
            loss = DenseHead.loss(dense.float(), (cover > 0.5).float())
        if self.step >= arguments.dense_steps:
            loss = loss + PROMPT_WEIGHT * self._prompted(item, embedding, cover)
            if len(item["with_whole"]):
                loss = loss + arguments.whole_weight * self._whole(item, embedding)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.step += 1
        self._note("loss", loss)
        self._note("deviation", embedding.maps.detach().float().std(0).mean())
        decay = min(0.998, (1 + self.step) / (20 + self.step))
        parameters = [parameter.detach() for parameter in self.sam.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    @torch.no_grad()
    def _taught(self, images: torch.Tensor) -> ImageEmbeddings:
        """The teacher's embedding of images (B, 3, 256, 256)."""
        assert self.teacher is not None
        with self.autocast():
            return encode(self.teacher.to(self.device), images)

    def _balance(self) -> float:
        after = self.step - self.arguments.dense_steps
        return max(0.0, 1 - after / self.arguments.balanced_steps) if self.arguments.balanced_steps else 0.0

    def _prompted(self, item: dict, embedding: ImageEmbeddings, cover: torch.Tensor) -> torch.Tensor:
        """The loss of the prompted objects and, in the later half, of one object's corrections."""
        kind = item["kind"]
        truth = cover[:, : 1 if kind == "mask" else self.arguments.prompts_per_image]
        partial = item["partial"].to(self.device)[:, None, None, None]
        known = torch.where(partial, neighbourhood(truth > 0.5), 1.0)
        prompts = {name: value.to(self.device) for name, value in item["prompts"].items()}
        masks, estimates = self._decode(embedding, prompts)
        loss, iou = prompt_loss(masks, estimates, truth, known, self._balance())
        self._note(kind, iou)
        rounds = item["rounds"] if self.done() >= 0.5 else 0
        truth, known, masks = truth[:, :1], known[:, :1], masks[:, :1]
        prompts = {name: value[:, :1] for name, value in prompts.items()}
        for number in range(rounds):
            prompts = correct(
                prompts,
                masks[:, 0, 0],
                truth[:, 0] > 0.5,
                known[:, 0] > 0,
                item["draws"][:, number : number + 1].to(self.device),
            )
            masks, estimates = self._decode(embedding, prompts)
            again, iou = prompt_loss(masks, estimates, truth, known, self._balance())
            loss = loss + 0.5 * again / rounds
            self._note("corrected", iou)
        return loss

    def _decode(self, embedding: ImageEmbeddings, prompts: dict) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = embed_prompts(self.sam, prompts, len(embedding))
        with self.autocast():
            return all_masks(self.sam, embedding, sparse, dense)

    def _whole(self, item: dict, embedding: ImageEmbeddings) -> torch.Tensor:
        """The loss without a prompt: what the source labels, told by its own vector or by the picture alone."""
        task, truth = item["task"].to(self.device), item["whole"].to(self.device)
        embedding = embedding[item["with_whole"].to(self.device)]
        sparse, dense = embed_prompts(self.sam, {}, len(embedding))
        dense = dense + (self.tasks(task) * (task > 0)[:, None])[:, :, None, None]
        with self.autocast():
            masks, estimates = all_masks(self.sam, embedding, sparse, dense)
        loss, _ = prompt_loss(masks, estimates, truth, torch.ones_like(truth), self._balance())
        for name, chosen in (("none", task == 0), ("task", task > 0)):
            if chosen.any():
                self._note(name, mask_iou(masks[chosen, :, 0], truth[chosen]).mean())
        return loss

    def _note(self, name: str, value: torch.Tensor) -> None:
        self.figures.setdefault(name, []).append(value.item())

    def log(self, seconds: float) -> None:
        """Print the means since the last line, and add them to `log.jsonl`; masks by their IoU."""
        means = {name: round(sum(values) / len(values), 3) for name, values in sorted(self.figures.items())}
        self.figures = {}
        self._write({"step": self.step, "seconds_a_step": round(seconds, 3), **means})

    def _write(self, line: dict) -> None:
        print(json.dumps(line), flush=True)
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    @torch.no_grad()
    def check(self) -> None:
        """Measure the averaged weights on the held-back sources, and keep them in `best/` if none were better."""
        assert self.held_back is not None
        current = {name: value.detach().clone() for name, value in self.sam.named_parameters()}
        self._put(self.average)
        found: dict[str, dict[str, float]] = {}
        for name, item, prompts in zip(self.held_back.names, self.held_back.items, self.held_back.prompts):
            images, truth = item["images"].to(self.device), item["cover"].to(self.device)
            with self.autocast():
                embedding = encode(self.sam, images)
            known = torch.where(item["partial"].to(self.device)[:, None, None, None], neighbourhood(truth > 0.5), 1.0)
            scores = {}
            for kind, prompt in prompts.items():
                masks, _ = self._decode(embedding, {n: value.to(self.device) for n, value in prompt.items()})
                scores[kind] = mask_iou(masks[:, :, 0] * known - (1 - known), truth).mean().item()
            if len(item["with_whole"]):
                masks, _ = self._decode(embedding[item["with_whole"].to(self.device)], {})
                scores["none"] = mask_iou(masks[:, :, 0], item["whole"].to(self.device)).mean().item()
            found[name] = {kind: round(score, 3) for kind, score in scores.items()}
        self._put(current)
        kinds = {kind for scores in found.values() for kind in scores}
        means = {}
        for kind in sorted(kinds):
            values = [scores[kind] for scores in found.values() if kind in scores]
            means[kind] = round(sum(values) / len(values), 4)
        score = sum(means.values()) / len(means)
        self._write({"step": self.step, "held_back": means, "mean": round(score, 4), "sources": found})
        if score > self.best:
            self.best = score
            self.export(self.folder / "best")

    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.sam.named_parameters():
            parameter.data.copy_(weights[name])

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a model folder, fp16 safetensors."""
        model_class, config_of = ARCHITECTURES[self.arguments.architecture]
        model = model_class(config_of())
        model.load_state_dict({n: b for n, b in self.sam.named_buffers() if "positional" in n}, strict=False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.average[name])
        model.half().save_pretrained(folder)
        config = folder / "config.json"
        # The weights are stored as fp16 to be small; a CPU computes in the dtype that the config names.
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
        SamAdaptProcessor(image_size=SIDE, patch_size=SIDE // GRID, resize="pad").save_pretrained(folder)


def mask_iou(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU (B, P) of logits and covered shares (B, P, 64, 64)."""
    predicted, true = logits > 0, truth > 0.5
    return (predicted & true).sum((-2, -1)) / (predicted | true).sum((-2, -1)).clamp(min=1)
