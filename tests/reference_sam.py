"""SAM and SAM-Adapter written down plainly from their papers, on the weights of a transformers model.

Slow and literal on purpose: complex FFT, explicit loops over windows, layer norms with the original eps.
"""

import torch
import torch.nn.functional as F


def complex_frequency_component(image: torch.Tensor, rate: float, keep: str, absolute: bool = True) -> torch.Tensor:
    """Square of the shifted complex spectrum removed or kept; real part, absolute value."""
    height, width = image.shape[-2:]
    half = int((height * width * rate) ** 0.5 // 2)
    square = torch.zeros(height, width)
    square[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 1
    spectrum = torch.fft.fftshift(torch.fft.fft2(image, norm="forward"), dim=(-2, -1))
    spectrum = spectrum * (1 - square if keep == "high" else square)
    component = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)), norm="forward").real
    return component.abs() if absolute else component


def adapter_prompts(
    weights: dict,
    tokens: torch.Tensor,
    image: torch.Tensor,
    layers: int,
    legacy: bool,
    keep: str = "high",
    absolute: bool = True,
):
    """P_0 … P_{L-1} of SAM-Adapter with the features `embedding` and `high` (or `low`), (B, h, w, D) each.

    `weights` has the keys embedding, high (or low), tune.<i>, up; each a (weight, bias) pair.
    """
    batch, height, width, channels = tokens.shape
    count = height * width
    if legacy:
        flat = tokens.reshape(batch, -1)
        source = torch.arange(channels)[None, :] * count + torch.arange(count)[:, None]  # (N, D): c * N + n
        rows = flat[:, source]
    else:
        rows = torch.stack([tokens[:, n // width, n % width] for n in range(count)], dim=1)
    guidance = rows @ weights["embedding"][0].T + weights["embedding"][1]
    component = complex_frequency_component(image, 0.25, keep, absolute)
    patch = weights[keep][0].shape[-1]
    component = F.conv2d(component, *weights[keep], stride=patch)
    guidance = guidance + component.flatten(2).transpose(1, 2)
    prompts = []
    for index in range(layers):
        hidden = F.gelu(guidance @ weights[f"tune.{index}"][0].T + weights[f"tune.{index}"][1])
        prompt = hidden @ weights["up"][0].T + weights["up"][1]
        prompts.append(prompt.reshape(batch, height, width, channels))
    return prompts


def attention_with_relative_positions(attention, x: torch.Tensor) -> torch.Tensor:
    """One image's or window's tokens (h, w, C), decomposed relative positions by index."""
    height, width, channels = x.shape
    heads = attention.num_attention_heads
    qkv = x.reshape(-1, channels) @ attention.qkv.weight.T + attention.qkv.bias
    query, key, value = qkv.reshape(height * width, 3, heads, -1).permute(1, 2, 0, 3)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    rows = torch.arange(height * width) // width
    columns = torch.arange(height * width) % width
    row_table = attention.rel_pos_h[rows[:, None] - rows[None] + height - 1]  # (N, N, c)
    column_table = attention.rel_pos_w[columns[:, None] - columns[None] + width - 1]
    scores = scores + torch.einsum("hqc,qkc->hqk", query, row_table + column_table)
    out = (scores.softmax(-1) @ value).transpose(0, 1).reshape(height * width, -1)
    return (out @ attention.proj.weight.T + attention.proj.bias).reshape(height, width, -1)


def encoder(
    vision, image: torch.Tensor, prompts: list[torch.Tensor] | None = None, after_attention=None, beside_mlp=None
) -> torch.Tensor:
    """SAM's image encoder (B, 3, S, S) -> (B, C, h, w), with an addition to the input of each block.

    `after_attention(block index, Y)` replaces the attention's output, `beside_mlp(block index, Z)` adds to the MLP's.
    """
    tokens = F.conv2d(image, vision.patch_embed.projection.weight, vision.patch_embed.projection.bias, stride=8)
    x = tokens.permute(0, 2, 3, 1) + vision.pos_embed
    for index, block in enumerate(vision.layers):
        if prompts is not None:
            x = x + prompts[index]
        normed = F.layer_norm(x, x.shape[-1:], block.layer_norm1.weight, block.layer_norm1.bias, 1e-6)
        size = block.window_size or x.shape[1]
        padded = F.pad(normed, (0, 0, 0, -x.shape[2] % size, 0, -x.shape[1] % size))
        out = torch.zeros_like(padded)
        for image_index in range(x.shape[0]):
            for top in range(0, padded.shape[1], size):
                for left in range(0, padded.shape[2], size):
                    window = padded[image_index, top : top + size, left : left + size]
                    attended = attention_with_relative_positions(block.attn, window)
                    out[image_index, top : top + size, left : left + size] = attended
        attended = out[:, : x.shape[1], : x.shape[2]]
        x = x + (attended if after_attention is None else after_attention(index, attended))
        normed = F.layer_norm(x, x.shape[-1:], block.layer_norm2.weight, block.layer_norm2.bias, 1e-6)
        hidden = F.gelu(F.linear(normed, block.mlp.lin1.weight, block.mlp.lin1.bias))
        x = x + F.linear(hidden, block.mlp.lin2.weight, block.mlp.lin2.bias)
        if beside_mlp is not None:
            x = x + beside_mlp(index, normed)
    x = x.permute(0, 3, 1, 2)
    neck = vision.neck
    x = channel_norm(F.conv2d(x, neck.conv1.weight), neck.layer_norm1)
    return channel_norm(F.conv2d(x, neck.conv2.weight, padding=1), neck.layer_norm2)


def channel_norm(x: torch.Tensor, norm, eps: float = 1e-6) -> torch.Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    normed = (x - mean) / torch.sqrt(variance + eps)
    return normed * norm.weight[None, :, None, None] + norm.bias[None, :, None, None]


def promptless_mask(sam, embedding: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """SAM's mask decoder without a prompt, mask token 0: (B, C, h, w) -> (B, 4h, 4w)."""
    decoder = sam.mask_decoder
    position = sam.get_image_wide_positional_embeddings().flatten(2).transpose(1, 2)  # (1, N, C)
    masks = []
    for image in embedding:
        keys = (image + sam.prompt_encoder.no_mask_embed.weight[0][:, None, None]).flatten(1).T[None]  # (1, N, C)
        query_position = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        queries = query_position
        for index, layer in enumerate(decoder.transformer.layers):
            if index == 0:
                queries = token_attention(layer.self_attn, queries, queries, queries)
            else:
                tokens = queries + query_position
                queries = queries + token_attention(layer.self_attn, tokens, tokens, queries)
            queries = norm(queries, layer.layer_norm1, eps)
            queries = queries + token_attention(
                layer.cross_attn_token_to_image, queries + query_position, keys + position, keys
            )
            queries = norm(queries, layer.layer_norm2, eps)
            queries = norm(queries + mlp(layer.mlp, queries), layer.layer_norm3, eps)
            keys = keys + token_attention(
                layer.cross_attn_image_to_token, keys + position, queries + query_position, queries
            )
            keys = norm(keys, layer.layer_norm4, eps)
        queries = queries + token_attention(
            decoder.transformer.final_attn_token_to_image, queries + query_position, keys + position, keys
        )
        queries = norm(queries, decoder.transformer.layer_norm_final_attn, 1e-5)
        grid = keys[0].T.reshape(1, -1, *embedding.shape[-2:])
        up = F.conv_transpose2d(grid, decoder.upscale_conv1.weight, decoder.upscale_conv1.bias, stride=2)
        up = F.gelu(channel_norm(up, decoder.upscale_layer_norm))
        up = F.gelu(F.conv_transpose2d(up, decoder.upscale_conv2.weight, decoder.upscale_conv2.bias, stride=2))
        head = decoder.output_hypernetworks_mlps[0]
        hidden = F.relu(head.proj_in(queries[0, 1]))
        hyper = head.proj_out(F.relu(head.layers[0](hidden)))
        masks.append(torch.einsum("c,chw->hw", hyper, up[0]))
    return torch.stack(masks)


def token_attention(module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    heads = module.num_attention_heads

    def split(x):  # (1, T, C) -> (heads, T, C / heads)
        return x[0].reshape(x.shape[1], heads, -1).transpose(0, 1)

    query, key, value = split(module.q_proj(query)), split(module.k_proj(key)), split(module.v_proj(value))
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    out = (scores.softmax(-1) @ value).transpose(0, 1)
    return module.out_proj(out.reshape(1, out.shape[0], -1))


def norm(x: torch.Tensor, layer, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, eps)


def mlp(module, x: torch.Tensor) -> torch.Tensor:
    return module.lin2(F.relu(module.lin1(x)))
