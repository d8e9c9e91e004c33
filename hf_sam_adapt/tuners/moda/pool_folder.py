"""The pool on disk: a router, and a folder with an ordinary adapter for each domain."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ...errors import UserError, first_line
from ...files import whole_file
from ...repository import DOMAINS, commit_of, domains_of, find_file
from ...sam.base_names import stored
from ...sam.fingerprint import check_fingerprint
from ..common.undo import unchanged_if_refused
from .config import ModaConfig, differing_fields, further_fields
from .tensor_names import file_tensors


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_pool(pool, folder: Path) -> None:
    """See `ModaModel.save_pretrained`."""
    if pool.open_domain is not None:
        raise UserError(f"domain {pool.open_domain!r} is open: finish_domain() before the pool is saved")
    there = domains_of(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else []
    if there is None or there != pool.domains[: len(there)]:
        holds = "an adapter" if there is None else f"a pool of {', '.join(there)}"
        raise UserError(f"{folder} holds {holds}, which this one does not continue", fix="name another folder")
    for domain in pool.domains:
        name = pool.inner_name(domain)
        _write(folder / domain / WEIGHTS, _weights_file(file_tensors(pool.inner, name), {"format": "pt"}))
        _write(folder / domain / CONFIG, _config_file(pool.inner.peft_config[name], pool.model))
    # Which domains there are is in the router's file, so that one replacement makes a new one part of the pool.
    _write(folder / WEIGHTS, router_file(pool.router, pool.domains))
    _write(folder / CONFIG, _config_file(pool.moda_config, pool.model, pool=True))


def load_pool(cls: type, model: nn.Module, folder: str, revision: str | None):
    """See `ModaModel.from_pretrained`."""
    config_file = find_file(folder, CONFIG, revision)
    if config_file is None:
        raise UserError(
            f"{folder} holds no {CONFIG}", fix="name the folder or the Hub id of a pool of domain adapters"
        )
    kind = json.loads(config_file.read_text(encoding="utf-8"))
    if not kind.get("pool"):
        raise UserError(
            f"{folder} is not a pool of domain adapters but a {kind.get('peft_type')}", fix="use PeftModel"
        )
    revision = commit_of(config_file)
    weights = _weights(folder, revision)
    domains = domains_of(weights)
    if domains is None:
        raise UserError(f"{weights} does not name its domains", fix="it is not the router of a pool")
    config = ModaConfig.from_pretrained(str(config_file.parent))
    config.pool, config.inference_mode, config.domains = False, True, domains
    found = {name: read_domain(f"{folder}/{name}", config.inner, model, revision) for name in config.domains}
    config.domain_fields = {name: fields for name, (_, fields) in found.items()}
    with unchanged_if_refused(model):
        pool = cls(model, config)
        for name, (tensors, _) in found.items():
            pool._load_domain("default", name, tensors)
        pool.router.domains = list(config.domains)
        try:
            pool.router.load_state_dict(load_file(weights))
        except (RuntimeError, SafetensorError) as error:
            raise UserError(f"{weights} does not fit its config: {first_line(error)}") from error
    return pool.eval()


def read_domain(
    path: str, inner: PeftConfig, model: nn.Module, revision: str | None = None
) -> tuple[dict[str, torch.Tensor], dict]:
    """An ordinary adapter out of a folder, a Hub id, or a folder in a repository of the Hub.

    Returns:
        Its tensors, and the fields that its config sets and the pool's leaves open.

    Raises:
        UserError: no adapter there, a pickle only, one of another base than `model`, or a config that disagrees with
            the pool's.
    """
    config_file = find_file(path, CONFIG, revision)
    if config_file is None:
        raise UserError(f"{path} holds no {CONFIG}", key="adapter", fix="name the folder or Hub id of an adapter")
    revision = commit_of(config_file)
    own = PeftConfig.from_pretrained(str(config_file.parent))
    differing = differing_fields(inner, own)
    if differing:
        raise UserError(f"{path} differs from the pool's inner config in {', '.join(differing)}", key="adapter")
    fingerprint = getattr(own, "base_fingerprint", None)
    if fingerprint is not None:
        check_fingerprint(fingerprint, model, path)
    return load_file(_weights(path, revision)), further_fields(inner, own)


def router_file(router: nn.Module, domains: list[str]) -> bytes:
    """Content of the pool's own `adapter_model.safetensors`; one entry of metadata, for their order is random."""
    return _weights_file(router.state_dict(), {DOMAINS: json.dumps(domains)})


def _weights(path: str, revision: str | None) -> Path:
    weights = find_file(path, WEIGHTS, revision)
    if weights is None:
        raise UserError(
            f"{path} holds no {WEIGHTS}", key="adapter", fix="a pickle is not loaded, save it again as safetensors"
        )
    return weights


def _weights_file(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save(tensors, metadata=metadata)


def _config_file(config: PeftConfig, model: nn.Module, **changes) -> bytes:
    """`adapter_config.json` as PEFT writes it, so that `AutoPeftModel` finds the base model's class."""
    config = copy.copy(config)
    config.inference_mode = True
    config.base_model_name_or_path = config.base_model_name_or_path or model.name_or_path
    base = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    values = config.to_dict() | {"auto_mapping": base} | changes
    values["base_model_name_or_path"] = stored(values["base_model_name_or_path"])
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    return json.dumps(values, indent=2, sort_keys=True).encode()


def _write(path: Path, content: bytes) -> None:
    """Replace a file at once; one with this content is left alone."""
    if path.is_file() and path.read_bytes() == content:
        return
    with whole_file(path) as part:
        part.write_bytes(content)
