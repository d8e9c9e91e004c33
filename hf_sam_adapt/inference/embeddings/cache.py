"""Which models' embeddings may be kept, what they depend on, and the pass that computes what is missing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub import constants
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from tqdm.auto import tqdm

from ...data import SegmentationSplit
from ...distributed import SampleLoader, of_all_ranks, rank_and_world
from ...errors import UserError
from ...sam.attention import attention_kind
from ...sam.families import family_of, find_vision_encoder
from ...sam.fingerprint import hash_tensors
from ...sam.processing import SamAdaptProcessor
from ...tuners.common.hq import live_early_map
from ..forward import encode, sam_of
from ..variants import device_of, inference
from .split import EmbeddedSplit
from .store import EmbeddingStore


_FORMAT = 2  # of what is hashed and stored
# What a config says about its file; the dtype is that of the weights.
_OF_THE_FILE = ("_name_or_path", "architectures", "dtype", "transformers_version")


def check_cacheable(model: nn.Module) -> None:
    """Refuse a model whose image embeddings change during its training.

    Args:
        model: `SamModel` or `PeftModel`, with `requires_grad` as it shall be trained.

    Raises:
        UserError: a parameter of the encoder is trained, an adapter acts in it, or it draws dropout.
    """
    encoder = find_vision_encoder(model)
    config, reason = family_of(encoder).config_of(encoder), None
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        reason = "the method trains the image encoder"
    elif any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in encoder.modules()):
        reason = "an adapter acts in the image encoder"
    elif any(part.requires_grad for part in _embedding_parameters(model).values()):
        reason = "the method trains what computes the decoder's inputs"
    elif any(getattr(config, name, 0) > 0 for name in ("attention_dropout", "hidden_dropout")):
        reason = "the image encoder has dropout"
    if reason:
        raise UserError(
            f"{reason}, so its embeddings cannot be kept",
            key="cache_embeddings",
            fix="leave cache_embeddings out, or take a method that leaves the encoder as it is, such as decoder",
        )


def cache_root() -> Path:
    """Where embeddings go: `embeddings` in `$HF_SAM_ADAPT_CACHE`, by default `hf_sam_adapt` in Hugging Face's home."""
    own = os.environ.get("HF_SAM_ADAPT_CACHE")
    return (Path(own).expanduser() if own else Path(constants.HF_HOME) / "hf_sam_adapt") / "embeddings"


def cache_key(model: nn.Module, processor: SamAdaptProcessor, precision: str) -> str:
    """Name of the folder for the embeddings of one encoder behind one processor, 32 hexadecimal digits.

    Hashes the encoder's weights and config, the processor's config, the precision, and what else moves the last bits:
    the type of the device, the attention kernel, and the version of transformers.
    """
    encoder = find_vision_encoder(model)
    settings = {
        "format": _FORMAT,
        "encoder": {k: value for k, value in encoder.config.to_dict().items() if k not in _OF_THE_FILE},
        "attention": attention_kind(encoder),
        "processor": processor.to_dict(),
        "precision": precision,
        "device": device_of(model).type,
        "transformers": transformers.__version__,
    }
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    hash_tensors(digest, encoder.state_dict() | _embedding_parameters(model))
    return digest.hexdigest()


def _embedding_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """What computes, behind the encoder, the maps that the decoder takes, by name."""
    sam, found = sam_of(model), {}
    for path in family_of(sam).embedding_parts:
        part = attrgetter(path)(sam)
        inside = [("", part)] if isinstance(part, torch.Tensor) else part.named_parameters()
        found.update({f"{path}.{name}": value for name, value in inside})
    return found


def image_digest(image: np.ndarray) -> str:
    """Digest of the pixels of an image (H, W, C) and their type, whatever file they came from."""
    digest = hashlib.blake2b(f"{image.dtype.str} {image.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


class EmbeddingCache:
    """Embeddings of one model's encoder, computed once per image content and kept between runs.

    What a decoder takes beside the encoder's output (the early maps of an HQ head, the finer maps of SAM 2 and 3) goes
    into folders of their own: the embeddings serve every decoder.

    Args:
        model: passed `check_cacheable`, on its device.
        processor: prepares the images.
        precision: "no", "bf16" or "fp16" autocast; embeddings are stored in the dtype that the encoder returns.
        batch_size: images encoded together.
        num_workers: processes that read images.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: SamAdaptProcessor,
        *,
        precision: str = "no",
        batch_size: int = 4,
        num_workers: int | None = 0,
    ) -> None:
        self.model, self.processor, self.precision = model, processor, precision
        self.batch_size, self.num_workers = batch_size, num_workers
        key, sam = cache_key(model, processor, precision), sam_of(model)
        self.store = EmbeddingStore(cache_root() / key)
        family, early = family_of(sam), live_early_map(sam)
        folders = {f"skip_{place}": f"skip_{place}" for place in range(family.skips)}
        if early is not None:
            folders["early"] = f"block{early.layer}"
        elif family.keeps_early:
            folders["early"] = "early"
        self.further = {name: EmbeddingStore(cache_root() / f"{key}_{folder}") for name, folder in folders.items()}

    def embed(self, *splits: SegmentationSplit) -> list[EmbeddedSplit]:
        """Each split with embeddings in place of its images; the main process says what that took in one line.

        In a distributed run every rank calls it, and the images are divided among the ranks.

        Raises:
            UserError: an unreadable image, or a folder that cannot be written or is not shared by all nodes.
        """
        rank, world = rank_and_world()
        embedded = [EmbeddedSplit(split, self.store, further=self.further) for split in splits]
        found = [self._embed_rows(split, range(rank, len(split), world)) for split in embedded]
        ranks = of_all_ranks(found)  # no rank goes on before all have written
        computed = sum(number for part in ranks for _, number in part)
        for store in self._stores:
            store.refresh()
        for place, split in enumerate(embedded):
            split.digests = _interleave([part[place][0] for part in ranks])
            if any(digest not in store for store in self._stores for digest in split.digests):
                raise UserError(
                    f"{self.store.folder} does not hold what other processes wrote",
                    key="cache_embeddings",
                    fix="name a folder that all nodes share in HF_SAM_ADAPT_CACHE",
                )
        if rank == 0:
            total = sum(map(len, embedded))
            held = f"{self.store.folder} holds {len(self.store)}, {self.store.num_bytes / 1e6:.1f} MB"
            if self.further:
                beside = sum(store.num_bytes for store in self.further.values())
                held += (
                    f", and {' and '.join(dict.fromkeys(map(_said, self.further)))} of {beside / 1e6:.1f} MB beside it"
                )
            print(f"Embeddings of {total} images: {computed} computed, {total - computed} reused; {held}.")
        return embedded

    @property
    def _stores(self) -> list[EmbeddingStore]:
        return [self.store, *self.further.values()]

    def _embed_rows(self, split: EmbeddedSplit, rows: range) -> tuple[list[str], int]:
        """Digests of the images at `rows`, and how many of them had to be encoded."""
        loader = SampleLoader(
            split.source,
            batch_size=self.batch_size,
            sampler=rows,
            num_workers=self.num_workers,
            collate_fn=list,
            # The loader's own draw must not touch the training's generator.
            generator=torch.Generator(),
        )
        digests: list[str] = []
        known: set[str] = set()
        waiting: list[tuple[str, np.ndarray]] = []
        bar = tqdm(total=len(rows), desc="embed", unit="image", disable=rows.start > 0, leave=False)
        with bar, inference([self.model], self.precision):
            for samples in loader:
                for sample in samples:
                    digest = image_digest(sample.image)
                    digests.append(digest)
                    split.remember(sample.index, sample.mask)
                    if digest not in known and any(digest not in store for store in self._stores):
                        known.add(digest)
                        waiting.append((digest, sample.image))
                # In batches of the training's size, whatever of them was in the store before.
                if len(waiting) >= self.batch_size:
                    self._encode(waiting[: self.batch_size])
                    del waiting[: self.batch_size]
                bar.update(len(samples))
            if waiting:
                self._encode(waiting)
        return digests, len(known)

    def _encode(self, images: Sequence[tuple[str, np.ndarray]]) -> None:
        pixel_values = self.processor([image for _, image in images])["pixel_values"]
        embeddings = encode(self.model, pixel_values.to(device_of(self.model)))
        for name, store in {"maps": self.store, **self.further}.items():
            for (digest, _), value in zip(images, embeddings.named[name]):
                if digest not in store:
                    store.write(digest, value)


def _said(name: str) -> str:
    return "early maps" if name == "early" else "finer maps"


def _interleave(parts: Sequence[list[str]]) -> list[str]:
    """Undo `rows[rank::world]`."""
    whole = [""] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
