"""Configuration of MoDA, a pool of domain adapters with a router (arXiv 2412.06418)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from peft import LoraConfig
from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from ...errors import UserError
from ...files import check_domain_name
from ...names import read_id2label
from ...sam.base_names import located, stored
from ..registry import ensure_peft_type
from ..sam_decoder import SamDecoderConfig
from ..stock import LORA_KEEPS_BASE


ROUTERS = ("probe", "joint")
HEADS = ("ridge", "ncm", "mahalanobis", "linear")
# The other values of these fields change the weights around the adapters.


@dataclass
class ModaConfig(PeftConfig):
    """One adapter per domain around one frozen SAM, and a router that picks one of them per image.

    Args:
        inner: the method of the domains' adapters: a config of this package or a `peft.LoraConfig`, or its dictionary.
            Default: `SamDecoderConfig(decoder="hq")`, the publication's; on a SAM whose decoder cannot have that head
            (SAM 2, SAM 3, SAM-HQ) `SamDecoderConfig()`.
        domains: names of the domains, in the order in which they were added.
        domain_fields: by domain, fields that `inner` leaves open and the adapter that the domain was added with sets.
        router: `"probe"`: the global tokens read the patches and are not read, so the image embedding stays SAM's, bit
            for bit, and one encoder pass serves both. `"joint"`: the official computation, with a pass of its own.
        head: what tells the domains apart by the router's features, one of ridge, ncm, mahalanobis, linear (the
            official one).
        statistics: the router also reads mean and standard deviation of the image embedding's channels, which tells
            real domains apart better than the publication's token alone (False).
        num_tokens: L, global tokens of the router, of which the first is read. None: the publication's ten for
            `"joint"`, one for `"probe"`, which tells real domains apart as well.
        learn_tokens: the tokens can be trained, by `fit_tokens` before a domain's images are observed; False: they are
            as drawn by `seed`.
        reject: share of known images that may be taken for unknown and go to plain SAM; 0 never rejects.
        buffer_size: features (never images) that are kept of each domain, to fit the head again.
        seed: of the tokens, the head's training and the choice of the features kept.
        init_weights: how a new domain's adapter starts, where it is not as the inner config says; False: random.
        pool: this is a folder of `ModaModel.save_pretrained`, with one ordinary adapter per domain in it.
        strict_load: missing or unexpected keys of an adapter file are an error.
        base_fingerprint: identity of the base model, written at injection and compared on loading.
    """

    inner: dict | PeftConfig | None = field(
        default=None,
        metadata={"help": "Config of the domains' adapters; null: SamDecoderConfig, with an hq decoder on SAM."},
    )
    domains: list[str] = field(default_factory=list, metadata={"help": "Names of the domains, in order."})
    domain_fields: dict[str, dict] = field(
        default_factory=dict, metadata={"help": "By domain, what its adapter sets and inner leaves open."}
    )
    router: str = field(default="probe", metadata={"help": f"How the tokens are read, one of {', '.join(ROUTERS)}."})
    head: str = field(default="ridge", metadata={"help": f"The router's classifier, one of {', '.join(HEADS)}."})
    statistics: bool = field(
        default=True, metadata={"help": "The router reads the image embedding's channel statistics, too."}
    )
    num_tokens: int | None = field(
        default=None, metadata={"help": "Global tokens of the router; null: 1 for probe, 10 for joint."}
    )
    learn_tokens: bool = field(default=False, metadata={"help": "The tokens can be trained, see fit_tokens."})
    reject: float = field(
        default=0.01, metadata={"help": "Share of known images that may go to plain SAM as unknown; 0: none."}
    )
    buffer_size: int = field(default=256, metadata={"help": "Features that are kept of each domain."})
    seed: int = field(default=0, metadata={"help": "Of tokens, head and choice of features."})
    init_weights: bool | str = field(
        default=True, metadata={"help": "False: a new domain's adapter starts from random weights."}
    )
    pool: bool = field(default=False, metadata={"help": "Written by ModaModel.save_pretrained: a folder per domain."})
    strict_load: bool = field(
        default=True, metadata={"help": "Missing or unexpected keys of an adapter file are an error."}
    )
    base_fingerprint: dict | None = field(
        default=None, metadata={"help": "Identity of the base model, written at injection."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ensure_peft_type("MODA")
        self.base_model_name_or_path = located(self.base_model_name_or_path)
        self.inner_is_default = self.inner is None
        self.inner = build_inner(self.inner)
        self.fingerprint_is_from_file = self.base_fingerprint is not None
        self.domain_fields = {
            name: fields | {"id2label": read_id2label(fields["id2label"])} if "id2label" in fields else fields
            for name, fields in self.domain_fields.items()
        }  # JSON has text keys
        for name, value, known in (("router", self.router, ROUTERS), ("head", self.head, HEADS)):
            if value not in known:
                raise UserError(f"{name}={value!r} is unknown", fix=f"use one of {', '.join(known)}")
        if self.num_tokens is None:
            self.num_tokens = 1 if self.router == "probe" else 10
        for name in ("num_tokens", "buffer_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)!r} must be at least 1")
        if not 0 <= self.reject < 1:
            raise UserError(f"reject={self.reject!r} must be a share of the known images, at least 0 and below 1")
        if self.reject and getattr(self.inner, "num_labels", None) is not None:
            raise UserError(f"reject={self.reject!r}: plain SAM has no classes for unknown images", fix="set reject=0")
        for index, name in enumerate(self.domains):
            check_domain_name(name, self.domains[:index])

    @property
    def num_labels(self) -> int | None:
        """Classes of every domain, None = one."""
        return self._shared("num_labels", self.domains)

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes of every domain."""
        return self._shared("id2label", self.domains)

    def _shared(self, name: str, domains: Sequence[str]) -> Any:
        """A field of the domains' configs: `inner`'s, or where that leaves it open the first domain's."""
        own = getattr(self.inner, name, None)
        return self.domain_fields.get(domains[0], {}).get(name) if own is None and domains else own

    def check_classes(self, domain: str, num_labels: int | None) -> None:
        """Raise `UserError` for a domain of other classes than the pool's, or of classes in a pool that rejects."""
        others = [name for name in self.domains if name != domain]
        known = self._shared("num_labels", others) if others else num_labels
        if known != num_labels:
            raise UserError(
                f"domain {domain!r} has {num_labels or 'no'} classes, the pool's others have {known or 'none'}",
                fix="give the domains of a pool the same classes",
            )
        if self.reject and num_labels is not None:
            raise UserError(f"reject={self.reject!r}: plain SAM has no classes for unknown images", fix="set reject=0")

    def to_dict(self) -> dict:
        """The config as plain JSON, the inner one included."""
        inner = self.inner.to_dict()
        return super().to_dict() | {
            "base_model_name_or_path": stored(self.base_model_name_or_path),
            "inner": {key: sorted(value) if isinstance(value, set) else value for key, value in inner.items()},
        }


def build_inner(inner: dict | PeftConfig | None) -> PeftConfig:
    """The inner config out of its dictionary; the publication's HQ head for None.

    Raises:
        UserError: no `peft_type`, an unknown one, MoDA itself, or a field that the type does not have.
    """
    if inner is None:
        return SamDecoderConfig(decoder="hq")
    if isinstance(inner, dict):
        fields = dict(inner)
        kind = str(getattr(fields.get("peft_type"), "value", fields.pop("peft_type", None))).upper()
        fields.pop("peft_type", None)
        config_cls = {str(key.value): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}.get(kind)
        if config_cls is None:
            raise UserError(
                f"{kind!r} is not a PEFT type", key="inner.peft_type", fix="name one, e.g. SAM_ADAPTER or LORA"
            )
        try:
            inner = config_cls(**fields)
        except TypeError as error:
            raise UserError(f"{error}", key="inner") from error
    if not isinstance(inner, PeftConfig) or isinstance(inner, ModaConfig):
        raise UserError(
            f"{type(inner).__name__} is not a config of a single method", key="inner", fix="use e.g. SamAdapterConfig"
        )
    if isinstance(inner, LoraConfig):
        for name, kept in LORA_KEEPS_BASE.items():
            if getattr(inner, name) not in kept:
                raise UserError(
                    f"inner.{name}={getattr(inner, name)!r} changes SAM's own weights, which the domains share",
                    fix=f"use {' or '.join(map(repr, kept))}",
                )
    return inner


# Fields of an adapter's config that belong to its file or its base.
FILE_FIELDS = {
    "auto_mapping",
    "base_fingerprint",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
}


def differing_fields(pool: PeftConfig, domain: PeftConfig) -> list[str]:
    """Names of the fields that the pool's inner config sets and the config of a domain's file has otherwise.

    What belongs to one file or base is not compared, nor what the pool leaves open: that is in `further_fields`.
    """
    if type(pool) is not type(domain):
        return ["peft_type"]
    wanted, found = asdict(pool), asdict(domain)
    return sorted(
        k for k, v in wanted.items() if k not in FILE_FIELDS and v is not None and _plain(v) != _plain(found[k])
    )


def further_fields(pool: PeftConfig, domain: PeftConfig) -> dict:
    """The fields that the pool's inner config leaves open and the config of a domain's file sets, as plain JSON."""
    wanted, found = asdict(pool), domain.to_dict()
    return {k: v for k, v in found.items() if k not in FILE_FIELDS and v is not None and wanted.get(k, v) is None}


def _plain(value):
    return sorted(value) if isinstance(value, (set, list, tuple)) and all(isinstance(v, str) for v in value) else value
