"""SAM-Adapter on an encoder whose blocks grow wider by stages: SAM 2's Hiera (SAM2-Adapter, arXiv 2408.04579).

The blocks whose inputs have one width are a group: those of a stage but for its first, and the first of the next
stage, which pools. A group has its own guidance and shared up-projection; what guides it is the stream at its first
adapted block, not the patch embedding, and a map of the image that a chain of overlapping convolutions makes from the
former group's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .config import SamAdapterConfig
from .layer import SamAdapterPatchEmbed, SamAdapterState, bottleneck, feature_map, input_width, projected


@dataclass(frozen=True)
class Group:
    """Blocks of an encoder with inputs of one width.

    Attributes:
        width: C of the inputs.
        stride: side of the former group's map over this one's; 1 for the first.
        first, last: indices of its blocks.
    """

    width: int
    stride: int
    first: int
    last: int

    def __contains__(self, block: int) -> bool:
        return self.first <= block <= self.last


def block_groups(blocks: nn.ModuleList) -> list[Group]:
    """The groups of an encoder; a single one where all blocks are equally wide."""
    widths = [input_width(block) for block in blocks]
    starts = [index for index, width in enumerate(widths) if index == 0 or width != widths[index - 1]]
    ends = [start - 1 for start in starts[1:]] + [len(widths) - 1]
    strides = [1] + [(getattr(blocks[start - 1], "query_stride", None) or (1, 1))[0] for start in starts[1:]]
    return [Group(widths[a], stride, a, z) for a, z, stride in zip(starts, ends, strides)]


class OverlapEmbed(nn.Module):
    """A convolution with overlapping windows and a LayerNorm over channels: (B, C, H, W) -> (B, h, w, r)."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.proj, self.norm = conv, nn.LayerNorm(conv.out_channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class StagedState(SamAdapterState):
    """Makes the guidance of a group when its first adapted block asks for it."""

    least_rank = 3  # as of the smallest published encoder; a LayerNorm over fewer channels leaves signs or nothing

    def prompt(
        self, adapter_name: str, tune: nn.Module, stream: torch.Tensor | None = None, group: int = 0
    ) -> torch.Tensor:
        """P_i = Up_g(GELU(Tune_i(F_g))): (B, h, w, C_g), or (1, 1, 1, C_g) without features."""
        key, owner = (adapter_name, group), self.guidance.owner
        if key not in self.guidance.maps:
            self.guidance.maps[key] = owner.group_guidance(adapter_name, group, stream)
        return projected(owner.sam_adapter_up[adapter_name][str(group)], tune, self.guidance.maps[key])


class StagedPatchEmbed(SamAdapterPatchEmbed):
    """Wraps Hiera's patch embedding.

    `sam_adapter_up` and the feature `embedding` have an entry for each adapted group, named by its index; the other
    features a chain of `OverlapEmbed`, in the order of the groups up to the last adapted one.

    Args:
        base_layer: the patch embedding.
        groups: of the encoder.
    """

    def __init__(self, base_layer: nn.Module, groups: list[Group]):
        super().__init__(base_layer)
        self.groups = groups
        self.sam_adapter_state = StagedState()

    def _projections(self, config: SamAdapterConfig, blocks: list[int]) -> tuple[nn.ModuleDict, nn.Module]:
        adapted = [index for index, group in enumerate(self.groups) if any(block in group for block in blocks)]
        widths = [group.width for group in self.groups]
        ranks = [bottleneck(width, config, self.sam_adapter_state.least_rank) for width in widths]
        features = nn.ModuleDict()
        for name in config.features:
            if name == "embedding":
                features[name] = nn.ModuleDict({str(i): nn.Linear(widths[i], ranks[i]) for i in adapted})
            else:
                last = max(adapted, default=-1)
                features[name] = nn.ModuleList(self._chain(self._channels(name), ranks[: last + 1]))
        return features, nn.ModuleDict({str(i): nn.Linear(ranks[i], widths[i]) for i in adapted})

    def _chain(self, channels: int, ranks: list[int]) -> list[OverlapEmbed]:
        """The first as the patch embedding, 7x7 with stride 4; the others 3x3, as coarse as their group."""
        first = self.get_base_layer().projection
        size = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
        chain = []
        for rank, group in zip(ranks, self.groups):
            chain.append(OverlapEmbed(nn.Conv2d(channels, rank, **size)))
            channels, size = rank, {"kernel_size": 3, "padding": 1}
            following = self.groups[len(chain)] if len(chain) < len(self.groups) else group
            size["stride"] = following.stride
        return chain

    def guide(self, pixel_values: torch.Tensor, tokens: torch.Tensor) -> None:
        guidance = self.sam_adapter_state.begin(self)
        for name in self.live_adapters:
            guidance.images[name] = self.image_guidance(name, pixel_values)

    def image_guidance(self, adapter_name: str, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The part of each group's F that the image alone gives, sum_j w_j H_{j, g} (B, h_g, w_g, r_g).

        Empty without such a feature.
        """
        config = self.sam_adapter_config[adapter_name]
        summed: list[torch.Tensor] = []
        for name, weight in zip(config.features, config.weights, strict=True):
            if name == "embedding":
                continue
            chain = self.sam_adapter_feature[adapter_name][name]
            maps = []
            image = feature_map(name, pixel_values, config)
            for embed in chain:
                image = image.to(embed.proj.weight.dtype)
                tokens = embed(image)
                maps.append(weight * tokens)
                image = tokens.permute(0, 3, 1, 2)
            summed = [a + b for a, b in zip(summed, maps)] if summed else maps
        return summed

    def group_guidance(self, adapter_name: str, group: int, stream: torch.Tensor) -> torch.Tensor:
        """F_g = w_e Lin_g(x_g) + sum_j w_j H_{j, g}: (B, h, w, r_g) in the adapter's dtype.

        Args:
            adapter_name: whose projections.
            group: index of the group.
            stream: input of its first adapted block (B, h, w, C_g).
        """
        config = self.sam_adapter_config[adapter_name]
        images = self.sam_adapter_state.guidance.images[adapter_name]
        guidance = images[group] if images else None
        if "embedding" in config.features:
            projection = self.sam_adapter_feature[adapter_name]["embedding"][str(group)]
            weight = config.weights[config.features.index("embedding")]
            feature = weight * projection(stream.to(projection.weight.device, projection.weight.dtype))
            guidance = feature if guidance is None else guidance + feature
        if guidance is None:
            return stream.new_zeros((1, 1, 1, 0), dtype=self.sam_adapter_up[adapter_name][str(group)].weight.dtype)
        return guidance
