"""Checkpoints of CoSAM's MoDA (arXiv 2412.06418): `adapter_<domain>.pth`, an HQ decoder, and the folder of them.

A file becomes one adapter. A folder, the `--output` of the official training, becomes a pool of domains: its newest
`task_classifier_after_*.pth` holds the tokens and a linear classifier whose rows are the domains in order.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..errors import UserError
from ..processing import SamAdaptProcessor
from ..tuners.common.hq import HQ_MODULES
from ..tuners.moda.config import ModaConfig, check_domain_name
from ..tuners.moda.disk import WEIGHTS, router_file
from ..tuners.moda.router import DomainRouter
from ..tuners.sam_decoder import SamDecoderConfig
from .checkpoint import read_state_dict
from .engine import Adapter, Base, Rules, Tensors, renamed, sam_config_of, split, write_converted
from .folder import save_config, write_whole
from .meta_names import META_NAMES


# The official order, which is that of the classifier's rows.
DOMAINS = ("BSData", "RSDD_I", "RSDD_II", "group1", "group2", "group3", "CAMO", "Polyp")
WINDOWS = (
    "The official encoder ran every block with global attention; here it is SAM's own, so masks differ from the "
    "published ones."
)

_CLASSIFIER = re.compile(r"task_classifier_after_(\d+)th")
_HEAD = "mask_decoder.sam_decoder_hq_head."
_RULES: Rules = [
    (r"mask_decoder\.hf_token\.", f"{_HEAD}hq_token."),
    (r"mask_decoder\.hf_mlp\.", f"{_HEAD}hq_mask_mlp."),
    *((rf"mask_decoder\.{name}\.", f"{_HEAD}{name}.") for name in HQ_MODULES[2:]),
]


def convert_cosam(
    state: Tensors, folder: Path, *, source: str, decoder: str | None, base: Base | None, image_size: int | None
) -> list[str]:
    """Write the HQ decoder in `state` as an adapter; arguments, result and errors as for `convert_conv_lora`."""
    if decoder is not None:
        raise UserError("decoder: a checkpoint of cosam is nothing but a decoder; leave it unset")
    state = renamed({f"mask_decoder.{name}": value for name, value in state.items()}, META_NAMES)
    tensors, frozen = split(state, _RULES)
    early = tensors.get(f"{_HEAD}compress_vit_feat.0.weight")
    if early is None or early.ndim != 4:
        raise UserError(f"checkpoint: {source} has no HQ decoder weights (hf_token, compress_vit_feat and so on)")
    sam_config = sam_config_of(state, len(early)) if base is None else base.model.config
    adapter = Adapter(SamDecoderConfig(decoder="hq", early_layer=0), tensors, frozen, [WINDOWS])
    return write_converted(
        adapter, sam_config, folder, source=source, title="the HQ decoder", base=base, image_size=image_size
    )


def convert_cosam_pool(
    checkpoints: Path,
    folder: Path,
    *,
    decoder: str | None,
    base: Base | None,
    image_size: int | None,
    domains: list[str] | None,
) -> list[str]:
    """Write the pool of an official training's folder.

    Args:
        checkpoints: holds `adapter_<domain>.pth` of every domain and `task_classifier_after_<n>th_*.pth`.
        folder: see `write_whole`.
        domains: the domains in the order of their training; None: the official one.

    Returns:
        What was left out or compared, in sentences; what holds of each domain is said once.

    Raises:
        UserError: as `convert_cosam`; domains missing or unknown; no classifier, or one of other domains.
    """
    names = _domain_names(checkpoints, domains)
    classifier = _newest_classifier(checkpoints)
    tokens, weight, bias = _classifier_tensors(read_state_dict(classifier), str(classifier))
    if len(weight) != len(names):
        raise UserError(
            f"checkpoint: {classifier} tells {len(weight)} domains apart, the folder has {len(names)}: "
            f"{', '.join(names)}; name those that were trained before it as domains"
        )
    with write_whole(folder) as part:
        for name in names:
            source = checkpoints / f"adapter_{name}.pth"
            state = read_state_dict(source)
            notes = convert_cosam(
                state, part / name, source=str(source), decoder=decoder, base=base, image_size=image_size
            )
        processor = SamAdaptProcessor.from_pretrained(part / name)
        processor.save_pretrained(part)
        own = SamDecoderConfig.from_pretrained(str(part / name))
        config = ModaConfig(
            inner=SamDecoderConfig(decoder=own.decoder, early_layer=own.early_layer),
            domains=names,
            router="joint",
            head="linear",
            statistics=False,
            num_tokens=tokens.shape[1],
            reject=0,
            pool=True,
            base_fingerprint=own.base_fingerprint,
            base_model_name_or_path=own.base_model_name_or_path,
        )
        save_config(config, part)
        router = _router(tokens, weight, bias, processor.image_size)
        (part / WEIGHTS).write_bytes(router_file(router, names))
    return [*notes, "The images behind the router are not in the checkpoint, so no domain can be added to the pool."]


def _domain_names(checkpoints: Path, domains: list[str] | None) -> list[str]:
    """Names of the folder's adapters in the order of their training."""
    found = {path.stem.removeprefix("adapter_") for path in checkpoints.glob("adapter_*.pth")}
    if not found:
        raise UserError(f"checkpoint: {checkpoints} holds no adapter_<domain>.pth")
    if domains is None:
        unknown = sorted(found - set(DOMAINS))
        if unknown:
            raise UserError(
                f"domains: {', '.join(unknown)} in {checkpoints} are none of CoSAM's, so their order is unknown; "
                "name all domains in the order of their training"
            )
        return [name for name in DOMAINS if name in found]
    for index, name in enumerate(domains):
        check_domain_name(name, domains[:index])
    missing = [name for name in domains if name not in found]
    if missing:
        raise UserError(f"domains: {checkpoints} holds no adapter_{missing[0]}.pth")
    return domains


def _newest_classifier(checkpoints: Path) -> Path:
    """The classifier after the last task; each is trained from scratch on all domains before it."""
    found = {int(m[1]): path for path in checkpoints.glob("*.pth") if (m := _CLASSIFIER.match(path.name))}
    if not found:
        raise UserError(f"checkpoint: {checkpoints} holds no task_classifier_after_<n>th_task_training*.pth")
    return found[max(found)]


def _classifier_tensors(state: Tensors, source: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (1, L, C), weight (T, C) and bias (T,); the layer's name differs between versions of the code."""
    layers = {name: value for name, value in state.items() if name != "cls_token"}
    tokens = state.get("cls_token")
    weight = next((value for name, value in layers.items() if name.endswith("weight")), None)
    bias = next((value for name, value in layers.items() if name.endswith("bias")), None)
    if tokens is None or weight is None or bias is None or len(layers) != 2:
        raise UserError(f"checkpoint: {source} is no task classifier (cls_token and one linear layer)")
    if tokens.ndim != 3 or weight.shape != (len(bias), tokens.shape[-1]):
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
        raise UserError(f"checkpoint: {source}: the sizes of its tensors do not agree: {shapes}")
    return tokens.float(), weight.float(), bias.float()


def _router(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, image_size: int) -> DomainRouter:
    """The router with the official classifier, fitted without any feature."""
    router = DomainRouter(
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
