"""The mathematics of SAM-Adapter: guidance at the patch embedding, one prompt before each block."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...sam.per_thread import PerThread
from ..common.layer import ParameterTree, SamTunerLayer
from ..common.overlay import combined, current_parameters, overlaid
from .config import SamAdapterConfig
from .features import frequency_component, get_feature


class Guidance(PerThread):
    """Of the forward that runs: the patch embedding that began it, and what it gave, by adapter.

    `maps` holds F (B, h, w, r), of a staged encoder by adapter and group, and `images` the parts of these that the
    image alone gives, (B, h_g, w_g, r_g) in the order of the groups.
    """

    def __init__(self) -> None:
        self.owner: Any = None
        self.maps: dict[Any, torch.Tensor] = {}
        self.images: dict[str, list[torch.Tensor]] = {}


class SamAdapterState:
    """Carries the guidance from the patch embedding to the blocks within one forward.

    An object shared by all wrappers, which deepcopy and pickle keep one. Blocks reach the shared up-projection through
    the patch embedding of their own forward: in a replica that is not the original's.
    """

    def __init__(self, least_rank: int = 1) -> None:
        self.guidance, self.least_rank = Guidance(), least_rank

    def begin(self, owner: "SamAdapterPatchEmbed") -> Guidance:
        """The guidance of a new forward, to be filled."""
        self.forget()
        self.guidance.owner = owner
        return self.guidance

    def forget(self, *_: object) -> None:
        """Let go of the guidance; a forward hook of the encoder, for no later forward has a use for it."""
        self.guidance.__init__()  # type: ignore[misc]

    def prompt(
        self, adapter_name: str, tune: nn.Module, stream: torch.Tensor | None = None, group: int = 0
    ) -> torch.Tensor:
        """P_i = Up(GELU(Tune_i(F))), paper eq. 1: (B, h, w, D), or (1, 1, 1, D) without features.

        Args:
            adapter_name: whose weights.
            tune: the block's own projection.
            stream: input of the block (B, h, w, D), and
            group: the block's place by width, both of which matter in `StagedState` alone.
        """
        guidance = self.guidance.maps[adapter_name]
        return projected(self.guidance.owner.sam_adapter_up[adapter_name], tune, guidance)


class SamAdapterPatchEmbed(SamTunerLayer):
    """Wraps the patch embedding: sees the image and its tokens, the two inputs of the guidance.

    Holds, per adapter, one projection per feature (`sam_adapter_feature`), the up-projection that all blocks share
    (`sam_adapter_up`), and with `train_patch_embed` its own patch projection (`sam_adapter_projection`).
    """

    adapter_layer_names = ("sam_adapter_up", "sam_adapter_feature", "sam_adapter_projection")
    other_param_names = ("sam_adapter_config",)
    least_rank = 1

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.sam_adapter_up = nn.ModuleDict()
        self.sam_adapter_feature = nn.ModuleDict()
        self.sam_adapter_projection = nn.ModuleDict()
        self.sam_adapter_config: dict[str, SamAdapterConfig] = {}
        self.sam_adapter_state = SamAdapterState(self.least_rank)
        self._ending: RemovableHandle | None = None

    def forget_after(self, encoder: nn.Module) -> None:
        """Let go of the guidance at the end of each forward of the encoder; its graph would live on with it."""
        self._ending = encoder.register_forward_hook(self.sam_adapter_state.forget, always_call=True)

    def remove_hooks(self) -> None:
        """Leave the encoder as it came."""
        if self._ending is not None:
            self._ending.remove()

    def update_layer(self, adapter_name: str, config: SamAdapterConfig, blocks: list[int]) -> None:
        """Add an adapter's projections.

        Args:
            adapter_name: name of the adapter.
            config: its config.
            blocks: indices of the blocks that it adapts.

        Raises:
            UserError: if a feature is not registered.
        """
        projection = self.get_base_layer().projection
        if config.train_patch_embed:
            own = {name: nn.Parameter(value.detach().clone()) for name, value in projection.named_parameters()}
            self.sam_adapter_projection[adapter_name] = ParameterTree(own)
        if config.use_prompts:
            features, up = self._projections(config, blocks)
            for module in (features, up):
                init_weights(module, config)
            if config.init_weights is True:
                for layer in up.modules():
                    if isinstance(layer, nn.Linear):
                        nn.init.zeros_(layer.weight)
            self.sam_adapter_feature[adapter_name] = features
            self.sam_adapter_up[adapter_name] = up
        self.sam_adapter_config[adapter_name] = config
        self.finish_update(adapter_name, config.inference_mode)

    def _projections(self, config: SamAdapterConfig, blocks: list[int]) -> tuple[nn.ModuleDict, nn.Module]:
        """Of each feature, and the shared one up, not yet initialised."""
        projection = self.get_base_layer().projection
        width, patch = projection.out_channels, projection.kernel_size
        rank = bottleneck(width, config, self.least_rank)
        features = nn.ModuleDict()
        for name in config.features:
            if name == "embedding":
                features[name] = nn.Linear(width, rank)
            else:
                features[name] = nn.Conv2d(self._channels(name), rank, kernel_size=patch, stride=patch)
        return features, nn.Linear(rank, width)

    def _channels(self, feature: str) -> int:
        """Of the image-shaped feature."""
        if feature in ("high", "low"):
            return self.get_base_layer().projection.in_channels
        return get_feature(feature).channels

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(pixel_values)  # (B, h, w, D), SAM 3's (B, h w, D)
        self.guide(pixel_values, tokens)
        return tokens

    def guide(self, pixel_values: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put into the state what the blocks of this forward are guided by."""
        if tokens.ndim == 3:
            tokens = tokens.unflatten(1, (pixel_values.shape[2] // self.base_layer.projection.kernel_size[0], -1))
        guidance = self.sam_adapter_state.begin(self)
        for name in self.live_adapters:
            guidance.maps[name] = self.compute_guidance(name, pixel_values, tokens)

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The base's patch embedding, with the projections of active adapters that have one of their own."""
        names = self.live_in("sam_adapter_projection")
        if not names:
            return self.base_layer(pixel_values)
        own = [current_parameters(self.sam_adapter_projection[name]) for name in names]
        effective = combined(current_parameters(self.base_layer.projection), own)
        effective = {f"projection.{key}": value.to(pixel_values.dtype) for key, value in effective.items()}
        with overlaid(self.base_layer, effective) as patches:
            return patches(pixel_values)

    def compute_guidance(self, adapter_name: str, pixel_values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """F = sum_j w_j F_j (paper eq. 2).

        Args:
            adapter_name: whose projections.
            pixel_values: network input (B, 3, H, W).
            tokens: patch embedding before the position embedding (B, h, w, D).

        Returns:
            (B, h, w, r) in the adapter's dtype; (1, 1, 1, 0) without features.
        """
        config = self.sam_adapter_config[adapter_name]
        projections = self.sam_adapter_feature[adapter_name]
        guidance = None
        for name, weight in zip(config.features, config.weights, strict=True):
            projection = projections[name]
            if name == "embedding":
                feature = self._project_tokens(projection, tokens, config.embedding_layout)
            else:
                image = feature_map(name, pixel_values, config).to(projection.weight.dtype)
                feature = projection(image).permute(0, 2, 3, 1)  # (B, r, h, w) -> (B, h, w, r)
            feature = feature if weight == 1 else weight * feature
            guidance = feature if guidance is None else guidance + feature
        if guidance is None:
            return tokens.new_zeros((1, 1, 1, 0), dtype=self.sam_adapter_up[adapter_name].weight.dtype)
        return guidance

    @staticmethod
    def _project_tokens(projection: nn.Linear, tokens: torch.Tensor, layout: str) -> torch.Tensor:
        batch, height, width, _ = tokens.shape
        if layout == "legacy":
            tokens = legacy_order(tokens)
        feature = projection(tokens.to(projection.weight.dtype))
        return feature.reshape(batch, height, width, -1)


class SamAdapterBlock(SamTunerLayer):
    """Wraps one block and adds the prompts of the active adapters to its input.

    The addition stands outside the block's gradient checkpoint, which would otherwise recompute it from a state that
    a later forward has already overwritten.
    """

    adapter_layer_names = ("sam_adapter_tune",)

    def __init__(self, base_layer: nn.Module, state: SamAdapterState, group: int = 0):
        super().__init__(base_layer)
        self.sam_adapter_tune = nn.ModuleDict()
        self.sam_adapter_state, self.group = state, group

    def update_layer(self, adapter_name: str, config: SamAdapterConfig) -> None:
        """Add an adapter's layer-own projection Tune_i: r -> r, a bare bias without features."""
        rank = bottleneck(input_width(self.base_layer), config, self.sam_adapter_state.least_rank)
        tune = nn.Linear(rank, rank) if config.features else BiasOnly(rank)
        init_weights(tune, config)
        if config.use_prompts:
            self.sam_adapter_tune[adapter_name] = tune
        self.finish_update(adapter_name, config.inference_mode)

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        stream = hidden_states
        for name in self.live_adapters:
            prompt = self.sam_adapter_state.prompt(name, self.sam_adapter_tune[name], stream, self.group)
            hidden_states = hidden_states + prompt.to(hidden_states.device, hidden_states.dtype)
        return self.base_layer(hidden_states, *args, **kwargs)


def projected(up: nn.Linear, tune: nn.Module, guidance: torch.Tensor) -> torch.Tensor:
    """Up(GELU(Tune(F))); the shared projection may lie on another device than the block (`device_map`)."""
    return up(F.gelu(tune(guidance.to(tune.bias.device))).to(up.weight.device))


class BiasOnly(nn.Module):
    """Tune_i of an adapter without features: the learned bias, whatever the input (…, 0) -> (r,)."""

    def __init__(self, rank: int):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(rank))

    def forward(self, guidance: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(*guidance.shape[:-1], -1)


def legacy_order(tokens: torch.Tensor) -> torch.Tensor:
    """Reorder tokens (B, h, w, D) into (B, N, D) as the official code does, N = h * w.

    It reads the channels-last tensor as if it were channels-first: channel c of token n comes from position
    (c * N + n) // D and channel (c * N + n) % D, so every vector is gathered from all over the image.
    """
    batch, height, width, channels = tokens.shape
    return tokens.reshape(batch, channels, height * width).transpose(1, 2)


def feature_map(name: str, pixel_values: torch.Tensor, config: SamAdapterConfig) -> torch.Tensor:
    """The image-shaped guidance feature `name`: (B, C, H, W) -> (B, C', H, W), fp32, without gradient."""
    if name in ("high", "low"):
        # Low frequencies keep the mean, so the published absolute value folds dark onto bright.
        absolute = name == "high" or config.low_absolute
        return frequency_component(pixel_values, config.frequency_rate, keep=name, absolute=absolute)
    with torch.no_grad():
        return get_feature(name).compute(pixel_values.float())


def input_width(block: nn.Module) -> int:
    """D of a block's input, in every family the width of its first norm."""
    return block.layer_norm1.normalized_shape[0]


def bottleneck(width: int, config: SamAdapterConfig, least: int) -> int:
    """r = D // scale_factor."""
    return max(width // config.scale_factor, least)


def init_weights(module: nn.Module, config: SamAdapterConfig) -> None:
    """Initialise as published (spec of the official code): linear N(0, 0.02), convolution N(0, 2 / fan_out), bias 0.

    With `init_weights=False` all tensors get values of a size that changes the output visibly.
    """
    for layer in module.modules():
        if config.init_weights is False:
            for parameter in layer.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.3)
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, BiasOnly):
            nn.init.normal_(layer.bias, std=0.02)  # at zero, and with Up at zero, nothing would ever get a gradient
