"""Checkpoints of CoSAM (arXiv 2412.06418): MoDA's `adapter_<domain>.pth`, and L2P's prompt pool.

A file of MoDA, an HQ decoder, becomes one adapter. A folder, the `--output` of the official training, becomes a pool
of domains: its newest `task_classifier_after_*.pth` holds the tokens and a linear classifier whose rows are the
domains in order. The official encoder attends globally in every block, so the adapters have `global_attention`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...files import check_domain_name, whole_folder
from ...sam.processing import SamAdaptProcessor
from ...tuners.common.hq import HQ_MODULES
from ...tuners.l2p import L2pConfig
from ...tuners.moda.config import ModaConfig
from ...tuners.moda.pool_folder import WEIGHTS, router_file
from ...tuners.moda.router import DomainRouter
from ...tuners.sam_decoder import SamDecoderConfig
from .checkpoint import Checkpoint, check_finite, read_checkpoint
from .engine import Adapter, Request, Rules, Tensors, renamed, sam_config_of, split, write_converted
from .folder import save_config
from .meta_names import META_NAMES


# The official order, which is that of the classifier's rows.
DOMAINS = ("BSData", "RSDD_I", "RSDD_II", "group1", "group2", "group3", "CAMO", "Polyp")
UNTOLD = ("global_attention", "early_layer", "top_k")
# Published, and in no tensor: the encoder without windows, and images resized without antialiasing.
ENCODER: dict[str, Any] = {"global_attention": True}
RESAMPLING: dict[str, Any] = {"antialias": False}

_CLASSIFIER = re.compile(r"task_classifier_after_(\d+)(?:st|nd|rd|th)_")
HEAD = "mask_decoder.sam_decoder_hq_head."
HEAD_RULES: Rules = [
    (r"mask_decoder\.hf_token\.", f"{HEAD}hq_token."),
    (r"mask_decoder\.hf_mlp\.", f"{HEAD}hq_mask_mlp."),
    *((rf"mask_decoder\.{name}\.", f"{HEAD}{name}.") for name in HQ_MODULES[2:]),
]


def convert_cosam(checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    """Write the HQ decoder or prompt pool in a checkpoint as an adapter; result and errors as `convert_conv_lora`."""
    if request.decoder is not None:
        raise UserError("a checkpoint of cosam is nothing but a decoder", key="decoder", fix="leave it unset")
    pool = _prompt_pool(checkpoint.tensors)
    if pool is not None:
        return _convert_l2p(*pool, checkpoint, folder, request)
    fields = ENCODER | {"early_layer": 0} | _taken(request, ("global_attention", "early_layer"), "an HQ decoder")
    state = renamed({f"mask_decoder.{name}": value for name, value in checkpoint.tensors.items()}, META_NAMES)
    tensors, frozen = split(state, HEAD_RULES)
    early = tensors.get(f"{HEAD}compress_vit_feat.0.weight")
    if early is None or early.ndim != 4:
        raise UserError(
            f"{checkpoint} has no HQ decoder weights (hf_token, compress_vit_feat and so on)", key="checkpoint"
        )
    sam_config = sam_config_of(state, len(early)) if request.base is None else request.base.model.config
    config = SamDecoderConfig(decoder="hq", **fields)
    adapter = Adapter(config, tensors, frozen, [], ("global_attention", "early_layer"), RESAMPLING)
    return write_converted(adapter, sam_config, folder, checkpoint, request, title="the HQ decoder")


def _taken(request: Request, names: tuple[str, ...], what: str) -> dict[str, Any]:
    """The caller's fields, of which only `names` are of `what`."""
    for name in request.fields:
        if name not in names:
            raise UserError(f"{what} has none", key=f"method_args.{name}", fix=f"use {', '.join(names)}")
    return request.fields


def _prompt_pool(state: Tensors) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Prompts (M, L, C) and keys (M, C), if these two are all that there is."""
    if len(state) != 2:
        return None
    keys, prompts = sorted(state.values(), key=lambda value: value.ndim)
    fitting = keys.ndim == 2 and prompts.ndim == 3 and keys.shape == (prompts.shape[0], prompts.shape[2])
    return (prompts, keys) if fitting else None


def _convert_l2p(
    prompts: torch.Tensor, keys: torch.Tensor, checkpoint: Checkpoint, folder: Path, request: Request
) -> list[str]:
    names = ("global_attention", "top_k")
    fields = ENCODER | _taken(request, names, "a prompt pool")
    config = L2pConfig(pool_size=len(prompts), prompt_length=prompts.shape[1], **fields)
    told = {"mask_decoder.mask_tokens.weight": prompts[0]}
    sam_config = sam_config_of(told, width=768) if request.base is None else request.base.model.config
    notes = [
        "The official code gives the prompts to a pre-trained HQ decoder, which is not in the file. Here SAM's own "
        "decoder gets them, so masks differ from the published ones."
    ]
    tensors = {"mask_decoder.l2p_prompts": prompts, "mask_decoder.l2p_keys": keys}
    adapter = Adapter(config, tensors, {}, notes, names, RESAMPLING)
    return write_converted(adapter, sam_config, folder, checkpoint, request, title="L2P")


def convert_cosam_pool(
    checkpoints: Path, folder: Path, request: Request, *, domains: list[str] | None, classifier: str | None
) -> list[str]:
    """Write the pool of an official training's folder.

    Args:
        checkpoints: holds `adapter_<domain>.pth` of every domain and `task_classifier_after_<n>th_*.pth`.
        folder: see `whole_folder`.
        domains: the domains in the order of their training; None: the official one.
        classifier: name of the classifier's file in `checkpoints`; None: the newest.

    Returns:
        What was left out or compared, in sentences; what holds of each domain is said once.

    Raises:
        UserError: as `convert_cosam`; domains missing or unknown; no classifier, one of other domains, or several of
            which any could be meant.
    """
    files = _domain_files(checkpoints, domains)
    router_source = read_checkpoint(checkpoints / classifier if classifier else _newest_classifier(checkpoints))
    tokens, weight, bias = _classifier_tensors(router_source)
    if len(weight) != len(files):
        raise UserError(
            f"{router_source} tells {len(weight)} domains apart, the folder has {len(files)}: {', '.join(files)}",
            key="checkpoint",
            fix="name those that were trained before it as domains",
        )
    with whole_folder(folder) as part:
        notes_of = {name: convert_cosam(read_checkpoint(path), part / name, request) for name, path in files.items()}
        configs = [SamDecoderConfig.from_pretrained(str(part / name)) for name in files]
        processor = SamAdaptProcessor.from_pretrained(part / next(iter(files)))
        processor.save_pretrained(part)
        own = configs[0]
        config = ModaConfig(
            inner=SamDecoderConfig(
                decoder=own.decoder, early_layer=own.early_layer, global_attention=own.global_attention
            ),
            domains=list(files),
            router="joint",
            head="linear",
            statistics=False,
            num_tokens=tokens.shape[1],
            reject=0,
            pool=True,
            base_fingerprint=own.base_fingerprint if all(one.base_fingerprint for one in configs) else None,
            base_model_name_or_path=own.base_model_name_or_path,
        )
        save_config(config, part)
        router = _router(tokens, weight, bias, processor.image_size)
        (part / WEIGHTS).write_bytes(router_file(router, list(files)))
    notes = _once(notes_of)
    if domains is None:
        notes.insert(0, f"Domains in CoSAM's order, which the router's rows are taken to have: {', '.join(files)}.")
    return [
        f"Router: {router_source.path.name}.",
        *notes,
        "The images behind the router are not in the checkpoint, so no domain can be added to the pool.",
    ]


def _once(notes_of: dict[str, list[str]]) -> list[str]:
    """What holds of every domain once, the rest with the domain's name."""
    first = next(iter(notes_of.values()))
    common = [note for note in first if all(note in notes for notes in notes_of.values())]
    return common + [f"{name}: {note}" for name, notes in notes_of.items() for note in notes if note not in common]


def _domain_files(checkpoints: Path, domains: list[str] | None) -> dict[str, Path]:
    """Domain -> its adapter's file, in the order of their training; the official code names most files `*_train`."""
    found: dict[str, Path] = {}
    for path in sorted(checkpoints.glob("adapter_*.pth")):
        name = _domain_of(path.stem.removeprefix("adapter_"))
        if name in found:
            raise UserError(
                f"{found[name].name} and {path.name} are of one domain, {name}", key="domains", fix="keep one of them"
            )
        found[name] = path
    if not found:
        raise UserError(f"{checkpoints} holds no adapter_<domain>.pth", key="checkpoint")
    if domains is None:
        unknown = sorted(found.keys() - set(DOMAINS))
        if unknown:
            raise UserError(
                f"{', '.join(unknown)} in {checkpoints} are none of CoSAM's, so their order is unknown",
                key="domains",
                fix="name all domains in the order of their training",
            )
        return {name: found[name] for name in DOMAINS if name in found}
    names = [_domain_of(name) for name in domains]
    for index, name in enumerate(names):
        check_domain_name(name, names[:index])
        if name not in found:
            raise UserError(f"{checkpoints} holds no adapter_{name}.pth", key="domains")
    return {name: found[name] for name in names}


def _domain_of(name: str) -> str:
    return name.removesuffix("_train")


def _newest_classifier(checkpoints: Path) -> Path:
    """The classifier after the last task; each is trained from scratch on all domains before it.

    Raises:
        UserError: there is none, or several that differ in the images of their training.
    """
    found: dict[int, list[Path]] = {}
    for path in sorted(checkpoints.glob("*.pth")):
        if match := _CLASSIFIER.match(path.name):
            found.setdefault(int(match[1]), []).append(path)
    if not found:
        raise UserError(f"{checkpoints} holds no task_classifier_after_<n>th_task_training*.pth", key="checkpoint")
    newest = found[max(found)]
    if len(newest) > 1:
        listed = ", ".join(path.name for path in newest)
        raise UserError(
            f"{checkpoints} holds several of the last task: {listed}", key="classifier", fix="name one as classifier"
        )
    return newest[0]


def _classifier_tensors(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (1, L, C), weight (T, C) and bias (T,); the layer's name differs between versions of the code."""
    state = checkpoint.tensors
    layers = {name: value for name, value in state.items() if name != "cls_token"}
    tokens = state.get("cls_token")
    weight = next((value for name, value in layers.items() if name.endswith("weight")), None)
    bias = next((value for name, value in layers.items() if name.endswith("bias")), None)
    if tokens is None or weight is None or bias is None or len(layers) != 2:
        raise UserError(f"{checkpoint} is not a task classifier (cls_token and one linear layer)", key="checkpoint")
    if tokens.ndim != 3 or bias.ndim != 1 or weight.shape != (len(bias), tokens.shape[-1]):
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
        raise UserError(f"{checkpoint}: the sizes of its tensors do not agree: {shapes}", key="checkpoint")
    check_finite(state, checkpoint)
    return tokens.float(), weight.float(), bias.float()


def _router(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, image_size: int) -> DomainRouter:
    """The router with the official classifier, fitted without any feature."""
    router: Any = DomainRouter(
        tokens.shape[-1],
        image_size=image_size,
        mode="joint",
        head="linear",
        statistics=False,
        num_tokens=tokens.shape[1],
        reject=0,
    )
    router.tokens, router.head.weight, router.head.bias = tokens, weight, bias
    return router
