"""The tensors of one domain: under the keys of an ordinary adapter file, and under those of the model."""

import torch
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper

from ...errors import UserError


# What a `PeftModel` puts before the keys of its tuner.
_PEFT_MODEL = "base_model."


def file_tensors(inner: BaseTuner, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the adapter `name` as `PeftModel.save_pretrained` would write them."""
    tensors = get_peft_model_state_dict(inner, adapter_name=name, save_embedding_layers=False)
    return {f"{_PEFT_MODEL}{key}": value for key, value in tensors.items()}


def model_tensors(inner: BaseTuner, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` of an adapter file under the keys of `inner.state_dict()`.

    Raises:
        UserError: missing or unexpected entries.
    """
    expected = set(file_tensors(inner, name))
    wrong = sorted(expected ^ tensors.keys())
    if wrong:
        raise UserError(
            f"the weights of domain {name.rpartition(':')[2]!r} do not fit their config: {len(wrong)} keys differ, "
            f"the first is {wrong[0]}",
            fix="the file is damaged or belongs to another adapter",
        )
    mapped = {key.removeprefix(_PEFT_MODEL): value for key, value in tensors.items()}
    for path, module in inner.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            for short, full in module.adapter_state_dict_load_map(name).items():
                mapped[f"{path}.{full}"] = mapped.pop(f"{path}.{short}")
    return type(inner)._remap_adapter_state_dict_for_load(inner, inner.peft_config[name], name, mapped)
