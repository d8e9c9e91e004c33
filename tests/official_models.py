"""The published networks of SAM-Adapter and CWSAM, from the tensors of their checkpoints alone."""

import json

import torch
import torch.nn.functional as F
from official_sam import official_name
from reference_sam import adapter_prompts, channel_norm
from sams import random_sam
from torch import nn


PE, NO_MASK = "pe_layer.positional_encoding_gaussian_matrix", "no_mask_embed.weight"
GENERATOR = "image_encoder.prompt_generator."


def images(count=2, seed=3):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def official_decoder(state):
    """A stock SamModel with the checkpoint's decoder, positional matrix and no-mask embedding."""
    sam = random_sam()
    decoder = {name: state[f"mask_decoder.{official_name(name)}"] for name in sam.mask_decoder.state_dict()}
    sam.mask_decoder.load_state_dict(decoder)
    with torch.no_grad():
        sam.shared_image_embedding.positional_embedding.copy_(state[PE])
        sam.prompt_encoder.no_mask_embed.weight.copy_(state[NO_MASK])
    return sam


def prompts_of(sam, state, x, feature):
    """The published prompts of every block, from the checkpoint's own tensors."""
    names = {"up": "shared_mlp", "embedding": "embedding_generator", feature: "prompt_generator.proj"}
    names |= {f"tune.{index}": f"lightweight_mlp_{index}.0" for index in range(3)}
    weights = {
        ours: (state[f"{GENERATOR}{theirs}.weight"], state[f"{GENERATOR}{theirs}.bias"])
        for ours, theirs in names.items()
    }
    return adapter_prompts(weights, sam.vision_encoder.patch_embed(x), x, 3, legacy=True, keep=feature)


def close(found, expected):
    spread = expected.std().item()
    assert spread > 1e-3
    torch.testing.assert_close(found, expected, atol=2e-4 * spread, rtol=0)


def class_logits(sam, state, embedding, classes):
    """CWSAM's head on its decoder, from the checkpoint's own tensors: (B, K, h, w)."""
    decoder, found = sam.mask_decoder, {}
    hooks = [
        decoder.output_hypernetworks_mlps[0].register_forward_hook(lambda m, a, out: found.update(hyper=out[:, 0])),
        decoder.upscale_conv2.register_forward_hook(lambda m, a, out: found.update(up=F.gelu(out))),
    ]
    sam(image_embeddings=embedding, multimask_output=False)
    for hook in hooks:
        hook.remove()
    source = embedding + sam.prompt_encoder.no_mask_embed.weight[0][:, None, None]
    first = F.gelu(decoder.upscale_conv2(F.gelu(decoder.upscale_layer_norm(decoder.upscale_conv1(source)))))
    head = {key.removeprefix("mask_decoder.cls_upscaling."): value for key, value in state.items() if "cls_up" in key}
    maps = F.conv_transpose2d(torch.cat([found["up"], first], 1), head["0.weight"], head["0.bias"], stride=2)
    norm = nn.LayerNorm(len(head["1.weight"]))
    norm.weight.data, norm.bias.data = head["1.weight"], head["1.bias"]
    maps = F.gelu(channel_norm(maps, norm))
    maps = F.gelu(F.conv2d(maps, head["3.weight"], head["3.bias"], stride=2, padding=3))
    hyper = found["hyper"]  # (B, c)
    return torch.stack([torch.einsum("bc,bchw->bhw", hyper, maps[:, k::classes]) for k in range(classes)], 1)
