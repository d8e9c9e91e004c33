"""Registration with PEFT: the one place that touches PEFT's closed type enum."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method


def ensure_peft_type(name: str) -> PeftType:
    """Return `PeftType.<name>`, adding the member if PEFT does not have it.

    PEFT offers no plug-in hook: `register_peft_method` accepts only names that are members of its enum, and an enum
    with members cannot be subclassed. The member is therefore built the way `enum` builds its own. Its name equals its
    value because PEFT looks up the JSON string in dictionaries keyed by the member: enums hash by name, `str` compares
    by value.

    Args:
        name: the type in upper case, e.g. `"SAM_ADAPTER"`.

    Raises:
        RuntimeError: if PEFT's enum no longer has the structure that this relies on.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    tables = ("_member_names_", "_member_map_", "_value2member_map_")
    if not (issubclass(PeftType, str) and all(hasattr(PeftType, table) for table in tables)):
        raise RuntimeError(
            f"cannot add {name} to peft's PeftType: the enum has changed; use a peft version of constraints.txt"
        )
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)
    member.__objclass__ = PeftType
    type.__setattr__(PeftType, name, member)  # EnumMeta.__setattr__ guards against replacing members
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    if hasattr(PeftType, "_hashable_values_"):  # Python >= 3.13
        PeftType._hashable_values_.append(name)
    return member


def register_method(name: str, config_cls: type, model_cls: type) -> None:
    """Register one method under `PeftType.<NAME>`; a second call with the same classes does nothing.

    Args:
        name: the method in lower case, e.g. `"sam_adapter"`; `model_cls.prefix` is its state-dict prefix.

    Raises:
        RuntimeError: if another package took the name or the prefix (PEFT itself does not notice the latter).
    """
    peft_type = ensure_peft_type(name.upper())
    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if registered is not None:
        if (registered.__module__, registered.__qualname__) == (config_cls.__module__, config_cls.__qualname__):
            return
        raise RuntimeError(f"PEFT type {peft_type.value} is already registered by {registered.__module__}")
    owners = [kind for kind, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items() if prefix == model_cls.prefix]
    # A subclass of another tuner keeps its prefix, as AdaLoRA does.
    if owners and not any(
        issubclass(base, PEFT_TYPE_TO_TUNER_MAPPING[k]) for k in owners for base in model_cls.__bases__
    ):
        raise RuntimeError(f"state-dict prefix {model_cls.prefix!r} is already used by {owners[0]}")
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix)
