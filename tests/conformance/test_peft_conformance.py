"""PEFT's own generic tests, run with our methods: `make conformance`.

Left out is what needs a language model (generation, token embeddings), features that our methods do not have (mixed
batches, weighted adapters, conversion to LoRA), and the tests of single methods. Tests that build PEFT's toy DeepMLP
are here again, on a SAM.
"""

import os

import pytest
import torch


if "PEFT_TESTS_DIR" not in os.environ:
    pytest.skip("PEFT's tests are not at hand (PEFT_TESTS_DIR); run `make conformance`", allow_module_level=True)

from cases import CASES, PAIRS, UNMERGEABLE
from models import MODELS, Factory, images
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from upstream import adopt, import_upstream

from hf_sam_adapt import L2pConfig


custom, common, configs, utils = import_upstream(
    "test_custom_models", "testing_common", "test_config", "testing_utils"
)
# the first case of each method on each model
ONE_EACH = list({row[1:3]: row for row in reversed(CASES)}.values())
CONFIG_CLASSES = [(cls, {}) for cls in dict.fromkeys(row[2] for row in CASES)]
adopt(custom.TestPeftCustomModel, custom.TEST_CASES, CASES)
adopt(custom.TestPeftFsdpStateDict, custom.TEST_CASES, CASES)
adopt(custom.TestMultipleActiveAdapters, custom.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES, PAIRS)
adopt(configs.TestPeftConfig, configs.ALL_CONFIG_CLASSES, CONFIG_CLASSES, keep=("test_from_peft_type",))
# PEFT's tests go offline for models that they have seen; ours are never on the Hub.
utils._HUB_MODEL_ACCESSES.update(dict.fromkeys(MODELS, 0))


def skip_if_merging_not_supported(model_id, config_cls, config_kwargs):
    reason = UNMERGEABLE.get(config_cls, UNMERGEABLE.get(config_kwargs.get("decoder")))
    if reason:
        pytest.skip(f"{config_cls.__name__} cannot be merged: {reason}")


custom._skip_if_merging_not_supported = common._skip_if_merging_not_supported = skip_if_merging_not_supported


def parametrize(cases: list[tuple]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("test_name, model_id, config_cls, config_kwargs", cases)


def without(*fields: str) -> list[tuple]:
    return [row for row in CASES if not row[3].keys() & set(fields)]


class Inputs:
    transformers_class = Factory

    def prepare_inputs_for_testing(self):
        return {"X": images().to(self.torch_device)}


class TestCustomModel(Inputs, custom.TestPeftCustomModel):
    @parametrize(CASES)
    def test_in_features_out_features_exposed(self, test_name, model_id, config_cls, config_kwargs):
        model = get_peft_model(Factory.from_pretrained(model_id), config_cls(**config_kwargs))
        layers = [layer for layer in tuner_layers(model) if hasattr(layer.get_base_layer(), "weight")]
        if not layers:
            pytest.skip("all its tuner layers wrap whole modules, which have no number of features")
        assert all(hasattr(layer, "in_features") and hasattr(layer, "out_features") for layer in layers)

    @parametrize([row for row in CASES if row[2] is not L2pConfig])  # whose keys have a loss of their own
    def test_only_params_are_updated(self, test_name, model_id, config_cls, config_kwargs, monkeypatch):
        # The step sizes that PEFT found for its toy models do not move the deep layers of a SAM; Adam's steps do not
        # depend on the size of the gradient.
        adam = torch.optim.Adam
        monkeypatch.setattr(torch.optim, "SGD", lambda parameters, lr: adam(parameters, lr=0.01, eps=1e-12))
        super().test_only_params_are_updated(test_name, model_id, config_cls, config_kwargs)


class TestFsdpStateDict(Inputs, custom.TestPeftFsdpStateDict):
    pass


class TestMultipleActiveAdapters(Inputs, custom.TestMultipleActiveAdapters):
    def resolve_model_cls(self, tuner_method):
        return Factory.from_pretrained(tuner_method)


class TestConfig(configs.TestPeftConfig):
    pass


class TestCommon(Inputs, common.PeftCommonTester):
    """Tests that PEFT runs with transformers models only, where the output has to be a tensor."""

    @pytest.mark.parametrize("check", ["_test_unload_adapter", "_test_merge_layers_nan"])
    @parametrize(CASES)
    def test_acting_adapter(self, check, test_name, model_id, config_cls, config_kwargs):
        getattr(self, check)(model_id, config_cls, utils.set_init_weights_false(config_cls, config_kwargs))

    @parametrize(without("modules_to_save"))  # PEFT does not activate two adapters with the same modules_to_save
    def test_merge_layers_multi(self, test_name, model_id, config_cls, config_kwargs):
        self._test_merge_layers_multi(model_id, config_cls, utils.set_init_weights_false(config_cls, config_kwargs))

    @parametrize(without("modules_to_save", "target_modules", "exclude_modules", "layers_to_transform"))
    def test_training_layer_indexing(self, test_name, model_id, config_cls, config_kwargs):
        self._test_training_layer_indexing(model_id, config_cls, config_kwargs)


class TestSam(common.PeftCommonTester):
    """The same with transformers' own classes."""

    transformers_class = Factory

    def prepare_inputs_for_testing(self):
        return {"pixel_values": images().to(self.torch_device)}

    @pytest.mark.parametrize(
        "check",
        [
            "_test_save_pretrained",
            "_test_save_pretrained_selected_adapters",
            "_test_load_model_low_cpu_mem_usage",
            "_test_load_multiple_adapters",
            "_test_from_pretrained_config_construction",
            "_test_peft_model_device_map",
            "_test_delete_adapter",
            "_test_delete_inactive_adapter",
            "_test_get_base_model_state_dict",
        ],
    )
    @parametrize(ONE_EACH)
    def test_common(self, check, test_name, model_id, config_cls, config_kwargs):
        getattr(self, check)(original(model_id), config_cls, config_kwargs)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @parametrize(ONE_EACH)
    def test_add_adapter_no_autocast_adapter_dtype(self, dtype, test_name, model_id, config_cls, config_kwargs):
        self._test_add_adapter_no_autocast_adapter_dtype(original(model_id), config_cls, config_kwargs, dtype)

    # PEFT takes SAM's prompt encoder for one of its prompt-tuning methods, hence the encoder alone.
    @pytest.mark.parametrize("use_reentrant", [True, False])
    @parametrize([row for row in without("modules_to_save") if row[1] == "TinySamVision"])
    def test_training_gradient_checkpointing(self, use_reentrant, test_name, model_id, config_cls, config_kwargs):
        self._test_training_gradient_checkpointing(original(model_id), config_cls, config_kwargs, use_reentrant)


def original(model_id: str) -> str:
    """The transformers class that a model of models.py derives from."""
    return f"{model_id.removeprefix('Tiny')}Model"


def tuner_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def adapter_parameters(model: torch.nn.Module, adapter_name: str) -> list[torch.nn.Parameter]:
    found = [parameter for name, parameter in model.named_parameters() if f".{adapter_name}." in f"{name}."]
    assert found
    return found


@parametrize(CASES)
def test_set_requires_grad(test_name, model_id, config_cls, config_kwargs):
    model = get_peft_model(Factory.from_pretrained(model_id), config_cls(**config_kwargs), adapter_name="adapter0")
    model.add_adapter("adapter1", config_cls(**config_kwargs))
    assert all(parameter.requires_grad for parameter in adapter_parameters(model, "adapter0"))
    assert not any(parameter.requires_grad for parameter in adapter_parameters(model, "adapter1"))
    model.set_requires_grad(adapter_names="adapter1")
    assert all(parameter.requires_grad for parameter in adapter_parameters(model, "adapter0"))
    assert all(parameter.requires_grad for parameter in adapter_parameters(model, "adapter1"))
    model.set_requires_grad(adapter_names=["adapter0", "adapter1"], requires_grad=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@parametrize([(*row[:3], row[3:]) for row in PAIRS])
def test_set_adapter_non_overlapping_modules(test_name, model_id, config_cls, config_kwargs):
    first, second = config_kwargs
    model = get_peft_model(Factory.from_pretrained(model_id), config_cls(**first))
    model.add_adapter("other", config_cls(**second))
    for owner in (model, model.base_model):
        for name, idle in (("other", "default"), ("default", "other")):
            owner.set_adapter(name)
            assert model.base_model.active_adapters == [name]
            assert all(layer.active_adapters == [name] for layer in tuner_layers(model))
            assert all(parameter.requires_grad for parameter in adapter_parameters(model, name))
            assert not any(parameter.requires_grad for parameter in adapter_parameters(model, idle))


@pytest.mark.parametrize("is_trainable", [False, True])
@parametrize(CASES)
def test_loading_model_requires_grad_set_correctly(
    test_name, model_id, config_cls, config_kwargs, is_trainable, tmp_path
):
    def assert_trainable(*adapter_names):
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == any(f".{adapter}." in f"{name}." for adapter in adapter_names)

    config = config_cls(**config_kwargs)
    get_peft_model(Factory.from_pretrained(model_id), config).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(Factory.from_pretrained(model_id), tmp_path, is_trainable=is_trainable)
    assert_trainable(*["default"] * is_trainable)
    model.load_adapter(tmp_path, adapter_name="other", is_trainable=is_trainable)
    assert_trainable(*["default", "other"] * is_trainable)
    model.load_adapter(tmp_path, adapter_name="opposite", is_trainable=not is_trainable)
    trainable = ("default", "other") if is_trainable else ("opposite",)
    assert_trainable(*trainable)
    model.add_adapter("added", config_cls(**config_kwargs))
    assert_trainable(*trainable)
