"""The models under PEFT's tests: very small SAMs with the interface of PEFT's toy models.

PEFT trains with `nll_loss(model(X), arange(9) % 2)`, so the output is (9, 2) log-probabilities.
"""

from pathlib import Path

import torch
from sams import randomise, sam_config
from torch import nn
from transformers import SamModel, SamVisionModel


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
        side = self.vision_encoder.image_size
        return nn.functional.interpolate(images, size=(side, side)).to(self.dtype)


class TinySam(AnyDtype, SamModel):
    """SAM without prompts whose output depends on mask token 0 and on its IoU estimate."""

    def forward(self, X: torch.Tensor, multimask_output: bool = False) -> torch.Tensor:
        outputs = super().forward(pixel_values=self.pixel_values(X), multimask_output=multimask_output)
        halves = outputs.pred_masks.reshape(len(X), 2, -1).mean(-1)  # (9, 1, 1, h, w) -> (9, 2)
        iou = outputs.iou_scores.reshape(len(X), 1)
        return (halves + torch.cat([iou, -iou], dim=1)).log_softmax(dim=-1)


class TinySamVision(AnyDtype, SamVisionModel):
    """SAM's encoder alone."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        embeddings = super().forward(pixel_values=self.pixel_values(X)).last_hidden_state
        return embeddings.reshape(len(X), 2, -1).mean(-1).log_softmax(dim=-1)  # (9, C, h, w) -> (9, 2)


MODELS = {cls.__name__: cls for cls in (TinySam, TinySamVision, SamModel, SamVisionModel)}


class Factory:
    """Stands in for the transformers class of PEFT's tests: `from_pretrained` always returns the same weights."""

    @staticmethod
    def from_pretrained(model_id: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        if Path(model_id).is_dir():  # a merged model that the test has saved
            return TinySam.from_pretrained(model_id, dtype=dtype)
        torch.manual_seed(0)
        cls = MODELS[model_id]
        config = sam_config(**SIZES)
        config = config if issubclass(cls, SamModel) else config.vision_config
        config._name_or_path = model_id
        # Some tests write state dicts with safetensors, which refuses the positional matrix that SAM uses twice.
        config.tie_word_embeddings = not issubclass(cls, AnyDtype)
        return randomise(cls(config), std=0.4).to(dtype)


def images() -> torch.Tensor:
    """The nine images (9, 3, S, S) of all tests."""
    return torch.randn(9, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
