"""The models under PEFT's tests: very small SAMs with the interface of PEFT's toy models.

PEFT trains with `nll_loss(model(X), arange(9) % 2)`, so the output is (9, 2) log-probabilities.
"""

from pathlib import Path

import torch
from sams import randomise, sam2_config, sam3_tracker_config, sam_config, sam_hq_config
from torch import nn
from transformers import AutoConfig, Sam2Model, Sam3TrackerModel, SamHQModel, SamModel, SamVisionModel

from hf_sam_adapt.sam.families import encoder_shape, family_of
from hf_sam_adapt.sam.mask_choice import stop_choosing


IMAGE_SIZE = 32
SIZES = {"image_size": IMAGE_SIZE, "layers": 2}


class AnyDtype:
    """PEFT's tests assign `model.dtype`, which is read-only in transformers."""

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @dtype.setter
    def dtype(self, value: torch.dtype) -> None:
        assert value == self.dtype

    def pixel_values(self, images: torch.Tensor) -> torch.Tensor:
        """Images (9, 3, S, S) at the model's input size and in its dtype."""
        side = encoder_shape(self).image_size
        return nn.functional.interpolate(images, size=(side, side)).to(self.dtype)


class Promptless(AnyDtype):
    """A SAM without prompts whose output depends on mask token 0 and on its IoU estimate."""

    def forward(self, X: torch.Tensor, multimask_output: bool = False) -> torch.Tensor:
        outputs = super().forward(pixel_values=self.pixel_values(X), multimask_output=multimask_output)
        halves = outputs.pred_masks.reshape(len(X), 2, -1).mean(-1)  # (9, 1, 1, h, w) -> (9, 2)
        iou = outputs.iou_scores.reshape(len(X), 1)
        return (halves + torch.cat([iou, -iou], dim=1)).log_softmax(dim=-1)


class TinySam(Promptless, SamModel):
    pass


class TinySam2(Promptless, Sam2Model):
    pass


class TinySam3Tracker(Promptless, Sam3TrackerModel):
    pass


class TinySamHQ(Promptless, SamHQModel):
    pass


class TinySamVision(AnyDtype, SamVisionModel):
    """SAM's encoder alone."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        embeddings = super().forward(pixel_values=self.pixel_values(X)).last_hidden_state
        return embeddings.reshape(len(X), 2, -1).mean(-1).log_softmax(dim=-1)  # (9, C, h, w) -> (9, 2)


TINY = (TinySam, TinySam2, TinySam3Tracker, TinySamHQ, TinySamVision)
OWN = (SamModel, Sam2Model, Sam3TrackerModel, SamHQModel, SamVisionModel)  # transformers'
MODELS = {cls.__name__: cls for cls in (*TINY, *OWN)}


def config_of(cls: type):
    """The config of a very small model of the class."""
    if issubclass(cls, SamHQModel):
        return sam_hq_config(**SIZES)
    if issubclass(cls, Sam2Model):
        return sam2_config(IMAGE_SIZE)
    if issubclass(cls, Sam3TrackerModel):
        return sam3_tracker_config(28, num_hidden_layers=2)
    config = sam_config(**SIZES)
    return config if issubclass(cls, SamModel) else config.vision_config


def as_ours(model: nn.Module) -> nn.Module:
    """The base as an adapter has it: faults of transformers mended, and the mask of token 0 in `eval()`, too."""
    family_of(model).mend(model)
    stop_choosing(model)
    return model


class Factory:
    """Stands in for the transformers class of PEFT's tests: `from_pretrained` always returns the same weights."""

    @staticmethod
    def from_pretrained(model_id: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        if Path(model_id).is_dir():  # a merged model that the test has saved
            config = AutoConfig.from_pretrained(model_id)
            cls = next(cls for cls in TINY if cls.config_class is type(config))
            return as_ours(cls.from_pretrained(model_id, dtype=dtype))
        torch.manual_seed(0)
        cls = MODELS[model_id]
        config = config_of(cls)
        config._name_or_path = model_id
        # Some tests write state dicts with safetensors, which refuses the positional matrix that SAM uses twice.
        config.tie_word_embeddings = not issubclass(cls, AnyDtype)
        std = 0.2 if issubclass(cls, (Sam2Model, Sam3TrackerModel)) else 0.4  # or their logits diverge at PEFT's rates
        return as_ours(randomise(cls(config), std=std).to(dtype))


def images() -> torch.Tensor:
    """The nine images (9, 3, S, S) of all tests."""
    return torch.randn(9, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
