"""The prompt pool: which prompts an image gets, and the loss on their keys."""

from collections import deque

import torch
import torch.nn.functional as F
from torch import nn

from ..common.layer import SamTunerLayer, as_keywords
from .config import L2pConfig


class L2pDecoder(SamTunerLayer):
    """Wraps SAM's mask decoder and appends the chosen prompts to its sparse prompt embeddings.

    Attributes:
        key_losses: of the calls in training mode since `key_loss` was last asked: (sum over images, images).
    """

    adapter_layer_names = ("l2p_prompts", "l2p_keys")
    other_param_names = ("l2p_config",)

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.l2p_prompts = nn.ParameterDict()
        self.l2p_keys = nn.ParameterDict()
        self.l2p_config: dict[str, L2pConfig] = {}
        # Short, so that calls whose loss nobody asks for do not pile up.
        self.key_losses: deque[tuple[torch.Tensor, int]] = deque(maxlen=16)

    def update_layer(self, adapter_name: str, config: L2pConfig) -> None:
        """Add a pool: prompts (M, L, C) and keys (M, C), uniform in -1..1."""
        channels = self.get_base_layer().hidden_size
        shapes = (config.pool_size, config.prompt_length, channels), (config.pool_size, channels)
        for tensors, shape in zip((self.l2p_prompts, self.l2p_keys), shapes):
            tensors[adapter_name] = nn.Parameter(torch.empty(shape).uniform_(-1, 1))
        self.l2p_config[adapter_name] = config
        self.finish_update(adapter_name, config.inference_mode)

    def forward(self, *args, **kwargs):
        """The base decoder's outputs, with further tokens; takes its arguments.

        Of these `image_embeddings` are (B, C, g, g), `sparse_prompt_embeddings` (B, P, n, C) or None.
        """
        kwargs = as_keywords(self.base_layer, args, kwargs)
        image_embeddings, sparse = kwargs["image_embeddings"], kwargs.pop("sparse_prompt_embeddings")
        for name in self.live_adapters:
            prompts = self.choose(name, image_embeddings)  # (B, k L, C)
            objects = 1 if sparse is None else sparse.shape[1]
            prompts = prompts[:, None].expand(-1, objects, -1, -1)  # (B, P, k L, C)
            sparse = prompts if sparse is None else torch.cat([sparse, prompts.to(sparse.dtype)], dim=2)
        return self.base_layer(sparse_prompt_embeddings=sparse, **kwargs)

    def choose(self, adapter_name: str, image_embeddings: torch.Tensor) -> torch.Tensor:
        """The prompts (B, k L, C) for image embeddings (B, C, g, g).

        In training all images of the call get the prompts that most of them chose.
        """
        keys, config = self.l2p_keys[adapter_name], self.l2p_config[adapter_name]
        query = image_embeddings.mean(dim=(2, 3)).to(keys.dtype)  # (B, C)
        similarity = F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T  # (B, M)
        chosen = similarity.topk(config.top_k, dim=1).indices  # (B, k)
        if self.training:
            # Not bincount, for which a GPU waits.
            counts = (chosen[..., None] == torch.arange(config.pool_size, device=chosen.device)).sum((0, 1))
            chosen = counts.argsort(descending=True, stable=True)[: config.top_k].expand(len(chosen), -1)
            loss = -config.key_weight * similarity.gather(1, chosen).sum()
            self.key_losses.append((loss, len(chosen)))
        return self.l2p_prompts[adapter_name][chosen].flatten(1, 2)  # (B, k, L, C) -> (B, k L, C)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"key_losses": deque(maxlen=16)}  # tensors inside a graph cannot be copied


def key_loss(model: nn.Module) -> torch.Tensor | None:
    """Minus the cosines between images and the keys of their prompts, summed over prompts, mean over images.

    Of the calls in training mode since this was last asked; None without any. Add it to the task's loss.
    """
    losses = []
    for module in model.modules():
        if isinstance(module, L2pDecoder):
            losses += module.key_losses
            module.key_losses.clear()
    if not losses:
        return None
    device = losses[0][0].device  # replicas of nn.DataParallel leave theirs here, too
    return sum(loss.to(device) for loss, _ in losses) / sum(count for _, count in losses)
