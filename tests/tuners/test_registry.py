import copy
import pickle
import subprocess
import sys

import pytest
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from hf_sam_adapt import ConvLoraConfig, SamAdapterConfig, SamAdapterModel, SamDecoderConfig
from hf_sam_adapt.tuners.registry import ensure_peft_type, register_method


NAMES = ["SAM_ADAPTER", "SAM_DECODER"]


@pytest.mark.parametrize("name", NAMES)
def test_member_is_a_full_member_of_the_enum(name):
    member = PeftType[name]
    assert member is PeftType(name) is getattr(PeftType, name) is ensure_peft_type(name)
    assert isinstance(member, PeftType) and isinstance(member, str)
    assert member == name and hash(member) == hash(name) and member.value == member.name == name
    assert list(PeftType).count(member) == 1 and name in list(PeftType)
    assert copy.deepcopy(member) is member and pickle.loads(pickle.dumps(member)) is member
    assert str(member) == str(PeftType.LORA).replace("LORA", name)
    assert PEFT_TYPE_TO_PREFIX_MAPPING[name] == name.lower() + "_"


def test_registration_is_idempotent_and_guarded():
    before = list(PeftType)
    register_method("sam_adapter", SamAdapterConfig, SamAdapterModel)
    assert list(PeftType) == before
    with pytest.raises(RuntimeError, match="already registered"):
        register_method("sam_adapter", SamDecoderConfig, SamAdapterModel)
    with pytest.raises(RuntimeError, match="'sam_adapter_' is already used"):
        register_method("another_method", SamDecoderConfig, SamAdapterModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING["SAM_ADAPTER"] is SamAdapterConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["SAM_ADAPTER"] is SamAdapterModel


@pytest.mark.parametrize("config_cls", [SamAdapterConfig, SamDecoderConfig, ConvLoraConfig])
def test_configs_are_plain_json_and_need_no_arguments(config_cls, tmp_path):
    config = config_cls()
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is config_cls
    assert loaded.to_dict() == config.to_dict()
    assert not any(isinstance(value, set) for value in config_cls(target_modules=["b", "a"]).to_dict().values())


def test_import_registers_and_loads_nothing_heavy():
    code = (
        "import sys, peft; before = set(sys.modules)\n"
        "import hf_sam_adapt\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new == {'hf_sam_adapt'}, new\n"
        "assert 'transformers.models.sam.modeling_sam' not in sys.modules\n"
        "assert 'SAM_ADAPTER' in peft.PeftType.__members__\n"
        "heavy = ('datasets', 'scipy', 'matplotlib', 'rich', 'evaluate', 'gradio', 'torchvision')\n"
        "import hf_sam_adapt.inference.loading, hf_sam_adapt.inference.forward, hf_sam_adapt.losses.segmentation\n"
        "assert not [name for name in heavy if name in sys.modules and name not in before], 'extras imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ORDERS = {
    "before PEFT": "import hf_sam_adapt, peft",
    "after PEFT": "import peft, hf_sam_adapt",
    "before a part of PEFT": "import hf_sam_adapt; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING",
    "before a package that imports PEFT": "import hf_sam_adapt; from transformers import Trainer; import peft",
    "by a name": "from hf_sam_adapt import SamAdapterConfig",
    "by a module": "import hf_sam_adapt.tuners.moda.model",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_methods_are_registered_whatever_is_imported_first(order):
    check = "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; assert {'MODA', 'CWSAM'} <= {*known}"
    subprocess.run([sys.executable, "-c", f"{ORDERS[order]}; {check}"], check=True)


def test_the_package_alone_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'peft', 'numpy', 'datasets'}"
    subprocess.run(
        [sys.executable, "-c", f"import hf_sam_adapt, sys; assert not {heavy} & {{*sys.modules}}"], check=True
    )
