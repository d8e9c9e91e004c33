"""From names to models: the base SAM, a method around it, and an adapter out of a folder or the Hub."""

import dataclasses
import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, SamModel

from ..config.methods import METHODS
from ..errors import UserError, first_line, one_line
from ..files import follow_umask, read_mapping
from ..repository import HubName, commit_of, find_file
from ..sam.attention import Kind, use_fast_attention
from ..sam.families import encoder_shape, family_of, family_of_type, find_vision_encoder
from ..sam.image_size import resize_input
from ..sam.input_channels import inflate_channels, input_channels
from ..sam.mask_choice import stop_choosing
from ..sam.processing import SamAdaptProcessor
from ..sam.tiny import TINY, load_tiny_sam
from ..tuners.common.decoder import freeze_outside_adapter
from ..tuners.moda import ModaModel
from ..tuners.stock import stock_tuner
from .prediction import classes_of, trains_estimate
from .processors import ADAPTER_CONFIG, adapter_processor, base_processor


ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIGS = {name: method.config_class() for name, method in METHODS.items()}


def method_of(config: PeftConfig | None) -> str:
    """The recipe's name of an adapter's method; None, a model folder, is `full`."""
    return "full" if config is None else next((name for name, cls in CONFIGS.items() if cls is type(config)), "peft")


@dataclass
class Loaded:
    """A model ready for prediction.

    Attributes:
        model: `PeftModel` for an adapter, `ModaModel` for a pool of domains, `SamModel` for a fully fine-tuned folder.
        processor: the processor it was trained with.
        config: the adapter's config, None for a model folder.
        base_name: `tiny`, folder or Hub id of the base model; None for a model folder.
        plain: whether it is a SAM as it came, which nothing has adapted.
    """

    model: nn.Module
    processor: SamAdaptProcessor
    config: PeftConfig | None
    base_name: str | None
    plain: bool = False

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of their labels; None for a model of one class."""
        return classes_of(self.config)

    @property
    def has_estimate(self) -> bool:
        """Whether the model's estimate of a mask's IoU means anything: SAM's own does until the masks change."""
        return self.plain or trains_estimate(self.config)


def load_for_inference(adapter: str | None, model: str | None = None, attention: Kind = "auto") -> Loaded:
    """Load an adapter, as `load_adapted` does, or the plain SAM `model` where no adapter is named.

    Raises:
        UserError: neither is named, or it cannot be loaded.
    """
    if adapter is not None:
        return load_adapted(adapter, model, attention=attention)
    if model is None:
        raise UserError("not given", key="adapter", fix="name a run folder or Hub id, or a plain SAM with --model")
    return Loaded(*load_base(model, attention), None, None, plain=True)


def load_named(name: str, model: str | None = None, attention: Kind = "auto") -> Loaded:
    """Load what `name` is: an adapter, a pool, a fully trained model, or a plain SAM.

    Args:
        name: run folder, adapter folder, model folder, Hub id (`owner/name@revision`), or `tiny`.
        model: base model in place of the one that the adapter names.

    Raises:
        UserError: nothing that can be loaded there, or a base model for what is no adapter.
    """
    whole = name == TINY or (not _exists(name, ADAPTER_CONFIG) and _exists(name, "config.json"))
    if whole and model is not None:
        raise UserError(f"{name} is a SAM, not an adapter", key="model", fix="leave model out")
    # Of whole models, those that a run trained hold its recipe.
    if not whole or (name != TINY and _exists(name, "recipe.yaml")):
        return load_adapted(name, model, attention=attention)
    return load_for_inference(None, name, attention)


def load_base(name: str, attention: Kind = "auto") -> tuple[SamModel, SamAdaptProcessor]:
    """Load a plain SAM in fp32 with its processor.

    Args:
        name: `"tiny"`, a model folder, or a Hub id, with a revision as `owner/name@revision`.
        attention: how the encoder computes its attention, see `use_fast_attention`.

    Raises:
        UserError: if there is no such model, or it is an adapter, or not a SAM.
    """
    if name == TINY:
        model, processor = load_tiny_sam()
        use_fast_attention(model, attention)
        return model, processor
    try:
        config_file = find_file(name, "config.json")
    except UserError as error:
        problem = f"cannot load {name!r}: {error.problem}"
        raise error.replace(problem=problem, key="model", where=None) from error
    if config_file is None:
        if find_file(name, ADAPTER_CONFIG) is not None:
            raise UserError(f"{name} is an adapter, not a base model", key="model", fix="pass it as --adapter")
        raise UserError(
            f"cannot load {name!r}: no config.json", key="model", fix="use 'tiny', a model folder or a Hub id"
        )
    hub = None if Path(name).is_dir() else HubName.parse(name)
    place, commit = (name, None) if hub is None else (hub.id, commit_of(config_file))
    try:
        config = AutoConfig.from_pretrained(place, revision=commit)
        family = family_of_type(config.model_type, name)
        part = family.video_part(config) if config.model_type in family.also_types else {}
        model, report = family.model_class.from_pretrained(
            place, revision=commit, dtype=torch.float32, output_loading_info=True, **part
        )
    except (OSError, HTTPError) as error:
        raise UserError(
            f"cannot load {name!r}: {first_line(error)} Use 'tiny', a model folder or a Hub id", key="model"
        ) from error
    except SafetensorError as error:
        raise UserError(f"the weights of {name} are damaged ({first_line(error)})", key="model") from error
    except RuntimeError as error:  # of transformers, for weights of another size
        raise UserError(f"the weights of {name} are not those of its config.json", key="model") from error
    if report["missing_keys"]:
        raise UserError(
            f"{name} lacks {len(report['missing_keys'])} weights of a {family.model_class.__name__}, the first is "
            f"{min(report['missing_keys'])}",
            key="model",
        )
    family.mend(model)
    use_fast_attention(model, attention)
    return model, base_processor(name, model, commit)


def load_plain(name: str, processor: SamAdaptProcessor, attention: Kind = "auto") -> SamModel:
    """A plain SAM that takes the images of `processor`: beside an adapted model, zero-shot."""
    base, _ = load_base(name, attention)
    if encoder_shape(base).image_size != processor.image_size:
        resize_input(base, processor.image_size)
    channels = 3 if processor.channels is None else processor.channels
    if input_channels(find_vision_encoder(base)) != channels:
        inflate_channels(base, channels)
    return base


def build_model(
    method: str, method_args: dict, base: SamModel, image_size: int | None = None, steps: int | None = None
) -> nn.Module:
    """Put a method around a base model, with everything that it does not train frozen.

    Args:
        method: a recipe's.
        method_args: fields of the method's config.
        base: the model to adapt; changed in place.
        image_size: side of the network input in pixels, None = the base's.
        steps: optimizer steps of the training, for tuners that ask; None = unknown.

    Returns:
        `PeftModel`, or for `full` the base itself with encoder and decoder trainable.

    Raises:
        UserError: unknown method, or a key that its config does not have.
    """
    if method not in METHODS:
        raise UserError(
            f"{method!r} is unknown{_nearest(method, METHODS)}", key="method", fix=f"use one of {', '.join(METHODS)}"
        )
    if method == "moda":
        raise UserError(
            "a pool of domains is trained by `continual`", key="method", fix="name the domains' method there"
        )
    family, native = family_of(base), encoder_shape(base).image_size
    if method in ("full", "lora", "peft"):  # of which no adapter of ours does it
        family.mend(base)
    if method == "full":
        if method_args:
            raise UserError(f"'full' takes none, found {', '.join(method_args)}", key="method_args")
        if image_size is not None and image_size != native:
            resize_input(base, image_size)
        base.requires_grad_(True)
        stop_choosing(base)  # the mask that is trained is the one that the saved model returns
        freeze_outside_adapter(base)
        return base
    config_cls = CONFIGS[method]
    if method in ("lora", "peft"):
        if image_size is not None and image_size != native:
            raise UserError(
                "a file of plain PEFT cannot store another input size", key="image_size", fix="use sam_adapter or full"
            )
        if method == "lora":
            if "peft_type" in method_args:
                raise UserError("lora has one", key="method_args.peft_type", fix="use method: peft")
            method_args = {"peft_type": "LORA"} | method_args
        config_cls, method_args = stock_tuner(method_args, family, steps)
    elif image_size is not None:
        method_args = {"image_size": image_size} | method_args
    known = [field.name for field in dataclasses.fields(config_cls)]
    for key in method_args:
        if key not in known:
            raise UserError(
                f"method_args.{key} is not a field of {config_cls.__name__}{_nearest(key, known)}", code="method-args"
            )
    try:
        model = get_peft_model(base, config_cls(**method_args))
    except (ValueError, TypeError, NotImplementedError) as error:  # of PEFT, for a value that it does not take
        if isinstance(error, UserError):
            raise
        raise UserError(f"{config_cls.__name__} refuses them: {first_line(error)}", key="method_args") from error
    freeze_outside_adapter(model)
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and not any(p.requires_grad for p in module.parameters()):
            raise UserError(
                f"no loss reaches {name.removeprefix('base_model.model.')}, so it would be saved untrained",
                key="method_args.modules_to_save",
                fix="leave it out",
            )
    return model


def load_adapted(path: str, model: str | None = None, trainable: bool = False, attention: Kind = "auto") -> Loaded:
    """Load an adapter (any PEFT method) on its base model, or a fully fine-tuned model folder; strict about both.

    Args:
        path: run folder, adapter folder or Hub id, with a revision as `owner/name@revision`.
        model: base model to use instead of the one that the adapter names; its fingerprint is compared.
        trainable: leave the adapter's weights trainable.
        attention: how the encoder computes its attention, see `use_fast_attention`.

    Raises:
        UserError: no adapter there, a pickle only, missing or unexpected keys, another base model or input size.
    """
    config_file = find_file(path, ADAPTER_CONFIG)
    if config_file is None:
        if find_file(path, "config.json") is None:
            raise UserError(
                f"{path} holds neither {ADAPTER_CONFIG} nor config.json",
                key="adapter",
                fix="name a run folder or Hub id",
            )
        base, processor = load_base(path, attention)
        return Loaded(base, processor, None, None)
    commit = commit_of(config_file)
    weights = find_file(path, ADAPTER_WEIGHTS, commit)
    if weights is None:
        raise UserError(
            f"{path} holds no {ADAPTER_WEIGHTS}",
            key="adapter",
            fix="a pickle (adapter_model.bin) can run code and is not loaded: save it again as safetensors",
        )
    named = read_mapping(config_file)
    base_name = model or named_base(named)
    if not base_name:
        raise UserError(f"{path} does not name its base model", key="adapter", fix="pass --model")
    try:
        base, processor = load_base(base_name, attention)
    except UserError as error:
        if model is not None:
            raise
        problem = f"{error.problem}, the base model that {config_file} names"
        raise error.replace(problem=problem, fix=error.fix or "name it with --model") from error
    if named.get("pool"):
        if trainable:
            raise UserError(
                f"{path} is a pool of domains", key="adapter", fix="`continual` with protocol moda adds domains to it"
            )
        pool = ModaModel.from_pretrained(base, path, commit)
        return Loaded(pool, adapter_processor(path, base, processor, commit), pool.moda_config, base_name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error, below
        try:
            peft_model = PeftModel.from_pretrained(base, str(config_file.parent), is_trainable=trainable)
            _check_keys(peft_model, weights)
        except UserError:
            raise
        except SafetensorError as error:
            problem = f"{weights} is damaged ({first_line(error)})"
            raise UserError(problem, key="adapter", fix="copy it again") from error
        except (ValueError, KeyError, RuntimeError) as error:  # of a plain tuner, which knows no family or size
            said = f"it misses {error}" if isinstance(error, KeyError) else one_line(error)[:240]
            problem = f"{path} does not fit {base_name}, a {family_of(base).title}: {said}"
            raise UserError(problem, key="adapter", fix="name its own base model, or its file is damaged") from error
    freeze_outside_adapter(peft_model)
    peft_model.eval()
    processor = adapter_processor(path, base, processor, commit)
    return Loaded(peft_model, processor, peft_model.peft_config["default"], base_name)


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, or for a plain SAM its model folder.

    Args:
        model: unwrapped `PeftModel` or `SamModel`.
        folder: where to; created if needed.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
    follow_umask(Path(folder))


def base_revision(name: str) -> str | None:
    """The revision in the name of a base model, as an adapter's config stores it."""
    return None if name == TINY or Path(name).is_dir() else HubName.parse(name).revision


def named_base(config: dict) -> str | None:
    """Name of the base model that an adapter's config names, with the revision if it names one."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    return f"{name}@{revision}" if name and revision and not Path(name).is_dir() else name


def _exists(name: str, file: str) -> bool:
    """Whether a folder or Hub id holds `file`; offline, whether the cache does, which need not know what is absent."""
    try:
        return find_file(name, file) is not None
    except UserError:
        if not constants.HF_HUB_OFFLINE:
            raise
        return False


def _check_keys(model: PeftModel, weights: Path) -> None:
    with safe_open(weights, framework="pt") as file:
        found = set(file.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    wrong = sorted(expected ^ found)
    if wrong:
        raise ValueError(f"{len(wrong)} keys differ, the first is {wrong[0]}")


def _nearest(word: str, known) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
