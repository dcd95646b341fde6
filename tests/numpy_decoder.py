"""SAM's decoder in plain numpy, as a reference."""

from __future__ import annotations

import math

import numpy as np

from trt_sam.model import SamDecoder


def numpy_decoder(
    decoder: SamDecoder,
    image: np.ndarray,
    coords: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray | None = None,
    has: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """SAM's prompt encoder and mask decoder written down once more, without torch."""
    w = {name: value.numpy() for name, value in decoder.state_dict().items()}
    rows, cols = decoder.grid
    n = len(coords)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str, eps: float = 1e-5) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        for i in (0, 1):
            x = np.maximum(linear(x, f"{name}.layers.{i}"), 0)
        return linear(x, f"{name}.layers.2")

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, name: str, present: np.ndarray | None = None) -> np.ndarray:
        q, k, v = (linear(x, f"{name}.{part}_proj") for x, part in ((q, "q"), (k, "k"), (v, "v")))
        width = q.shape[-1] // 8
        heads = []
        for h in range(8):
            part = slice(h * width, (h + 1) * width)
            scores = q[..., part] @ np.swapaxes(k[..., part], 1, 2) / math.sqrt(width)
            if present is not None:
                scores = np.where(present[:, None], scores, -np.inf)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[..., part])
        return linear(np.concatenate(heads, -1), f"{name}.out_proj")

    def fourier(xy: np.ndarray) -> np.ndarray:
        angles = 2 * np.pi * ((2 * xy - 1) @ w["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
        return np.concatenate([np.sin(angles), np.cos(angles)], -1)

    def patches(x: np.ndarray) -> np.ndarray:  # [n, h, w, c] to [n, h / 2, w / 2, c, 2, 2]
        return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).transpose(0, 1, 3, 5, 2, 4)

    def grow(x: np.ndarray, name: str) -> np.ndarray:  # [n, h, w, c] to [n, 2 h, 2 w, d]
        out = np.einsum("nhwc,cdij->nhiwjd", x, w[f"{name}.weight"])
        return out.reshape(len(x), 2 * x.shape[1], 2 * x.shape[2], -1) + w[f"{name}.bias"]

    points = fourier((coords + 0.5) / (16 * rows))
    for label in range(4):
        points[labels == label] += w[f"prompt_encoder.point_embeddings.{label}.weight"][0]
    points[labels == -1] = w["prompt_encoder.not_a_point_embed.weight"][0]
    outputs = np.concatenate([w["mask_decoder.iou_token.weight"], w["mask_decoder.mask_tokens.weight"]])
    token_pe = np.concatenate([np.broadcast_to(outputs, (n, 5, 256)), points], 1)
    present = np.concatenate([np.ones((n, 5), bool), labels != -2], 1)
    dense = np.broadcast_to(w["prompt_encoder.no_mask_embed.weight"], (n, rows * cols, 256))
    if mask is not None and has is not None:
        x, name = mask.transpose(0, 2, 3, 1), "prompt_encoder.mask_downscaling"
        for i in (0, 3):
            x = np.einsum("nhwcij,dcij->nhwd", patches(x), w[f"{name}.{i}.weight"]) + w[f"{name}.{i}.bias"]
            x = gelu(norm(x, f"{name}.{i + 1}", eps=1e-6))
        x = x @ w[f"{name}.6.weight"][:, :, 0, 0].T + w[f"{name}.6.bias"]
        dense = np.where(has[:, None, None] == 1, x.reshape(n, -1, 256), dense)
    keys = image.transpose(0, 2, 3, 1).reshape(1, -1, 256) + dense
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(cols) + 0.5) / cols, indexing="ij")
    image_pe = fourier(np.stack([x, y], -1)).reshape(1, -1, 256)
    tokens = token_pe
    for layer in ("mask_decoder.transformer.layers.0", "mask_decoder.transformer.layers.1"):
        if layer.endswith("0"):
            tokens = attend(tokens, tokens, tokens, f"{layer}.self_attn", present)
        else:
            q = tokens + token_pe
            tokens = tokens + attend(q, q, tokens, f"{layer}.self_attn", present)
        tokens = norm(tokens, f"{layer}.norm1")
        update = attend(tokens + token_pe, keys + image_pe, keys, f"{layer}.cross_attn_token_to_image")
        tokens = norm(tokens + update, f"{layer}.norm2")
        update = linear(np.maximum(linear(tokens, f"{layer}.mlp.lin1"), 0), f"{layer}.mlp.lin2")
        tokens = norm(tokens + update, f"{layer}.norm3")
        update = attend(keys + image_pe, tokens + token_pe, tokens, f"{layer}.cross_attn_image_to_token", present)
        keys = norm(keys + update, f"{layer}.norm4")
    final = "mask_decoder.transformer.final_attn_token_to_image"
    tokens = tokens + attend(tokens + token_pe, keys + image_pe, keys, final)
    tokens = norm(tokens, "mask_decoder.transformer.norm_final_attn")
    upscaled = grow(keys.reshape(n, rows, cols, 256), "mask_decoder.output_upscaling.0")
    upscaled = gelu(norm(upscaled, "mask_decoder.output_upscaling.1", eps=1e-6))
    upscaled = gelu(grow(upscaled, "mask_decoder.output_upscaling.3"))
    hyper = [mlp(tokens[:, 1 + i], f"mask_decoder.output_hypernetworks_mlps.{i}") for i in range(4)]
    masks = np.einsum("nmc,nhwc->nmhw", np.stack(hyper, 1), upscaled)
    return masks, mlp(tokens[:, 0], "mask_decoder.iou_prediction_head")
