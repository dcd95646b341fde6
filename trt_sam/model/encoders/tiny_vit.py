"""TinyViT with SAM's neck, the image encoder of MobileSAM: a photo at 1024 x 1024 to SAM's image embedding.

Structure: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (2022), section 3, in the size of 5
million weights, and Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications" (2023), which
keeps the grid at 64 x 64 by dropping the last stride, and puts SAM's neck on top. Parameter names are MobileSAM's. See NOTICE.

Between stages a picture is [batch, height, width, C]: linear layers read it as it lies, and for a convolution it is a
channels-last [batch, C, height, width], so that nothing is transposed in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_sam.model.encoders.windows import from_windows, to_windows
from trt_sam.model.prompt_encoder import LayerNorm2d

__all__ = ["ConvNorm", "TinyViT", "fold_for_inference"]

_WIDTHS = (64, 128, 160, 320)
_DEPTHS = (2, 2, 6, 2)
_HEADS = (2, 4, 5, 10)
_WINDOWS = (7, 7, 14, 7)
_STRIDES = (2, 2, 1)
"""Of the three mergings between stages."""
_EXPANSION = 4
_EMBED_DIM = 256


class TinyViT(nn.Module):
    """TinyViT-5M as MobileSAM has it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(3, _WIDTHS[0])
        self.layers = nn.ModuleList(self._stage(number) for number in range(4))
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], _EMBED_DIM, kernel_size=1, bias=False),
            LayerNorm2d(_EMBED_DIM),
            nn.Conv2d(_EMBED_DIM, _EMBED_DIM, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(_EMBED_DIM),
        )

    @staticmethod
    def _stage(number: int) -> Stage:
        width = _WIDTHS[number]
        blocks: list[nn.Module] = []
        for _ in range(_DEPTHS[number]):
            blocks.append(ConvBlock(width) if number == 0 else AttentionBlock(width, _HEADS[number], _WINDOWS[number]))
        last = number == len(_STRIDES)
        return Stage(blocks, None if last else PatchMerging(width, _WIDTHS[number + 1], _STRIDES[number]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised, padded pictures.

        Args:
            pixels: float [batch, 3, 1024, 1024], as `image_encoder.preprocess` makes them.

        Returns:
            float [batch, 256, 64, 64].
        """
        x = self.patch_embed(pixels.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        for stage in self.layers:
            x = stage(x)
        embedding: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return embedding


def fold_for_inference(model: TinyViT) -> TinyViT:
    """Compute once, in place, what no picture changes, and return the model; its state then has other names.

    Every BatchNorm goes into the convolution before it (in float64, so that one rounding is all it costs), and every attention
    gets its table of biases laid out by (query, key).
    """
    for module in list(model.modules()):
        if isinstance(module, WindowAttention):
            module.tabulate()
        for name, child in list(module.named_children()):
            if isinstance(child, ConvNorm):
                setattr(module, name, child.folded())
    return model


class Stage(nn.Module):
    """Blocks at one resolution, then the merging to the next; [batch, height, width, C] in and out."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class ConvNorm(nn.Module):
    """A convolution without bias and the BatchNorm after it; [batch, C, height, width]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.c(x))
        return y

    def folded(self) -> nn.Conv2d:
        """One convolution with a bias that does both, by the running statistics."""
        weight, norm, mean, variance = self.c.weight.detach(), self.bn, self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert variance is not None
        scale = norm.weight.detach().double() / torch.sqrt(variance.double() + norm.eps)
        shift = norm.bias.detach().double() - mean.double() * scale
        conv = nn.Conv2d(
            self.c.in_channels,
            self.c.out_channels,
            self.c.kernel_size,  # type: ignore[arg-type]
            self.c.stride,  # type: ignore[arg-type]
            self.c.padding,  # type: ignore[arg-type]
            groups=self.c.groups,
            device="meta",
        )
        folded = (weight.double() * scale[:, None, None, None]).to(weight.dtype)
        conv.weight = nn.Parameter(folded.contiguous(memory_format=torch.channels_last), requires_grad=False)
        conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
        return conv


class PatchEmbed(nn.Module):
    """[batch, 3, height, width] to [batch, C, height / 4, width / 4] by two strided convolutions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(inputs, width // 2, 3, stride=2), nn.GELU(), ConvNorm(width // 2, width, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.seq(x)
        return y


class ConvBlock(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow, add; [batch, height, width, C] in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = _EXPANSION * width
        self.conv1 = ConvNorm(width, hidden, 1)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x.permute(0, 3, 1, 2)
        y = functional.gelu(self.conv1(shortcut))
        y = functional.gelu(self.conv2(y))
        return functional.gelu(self.conv3(y) + shortcut).permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """[batch, height, width, C] to [batch, height / stride, width / stride, outputs]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 1)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.conv1(x.permute(0, 3, 1, 2)))
        merged: Tensor = self.conv3(functional.gelu(self.conv2(y)))
        return merged.permute(0, 2, 3, 1)


class AttentionBlock(nn.Module):
    """Attention inside windows, a convolution of each channel, an MLP; [batch, height, width, C] in and out."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y: Tensor = x + self.mlp(x)
        return y


class Mlp(nn.Module):
    """LayerNorm, then two linear layers with GELU between; [..., C] in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, _EXPANSION * width)
        self.fc2 = nn.Linear(_EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return y


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of a picture, with a learned bias for each distance.

    The picture is filled up with zeros to whole windows, and these take part as keys: LayerNorm, which comes after the filling,
    makes its own bias of them. The projection of queries, keys and values holds them head by head (q0 k0 v0 q1 k1 v1 ...).
    """

    bias: Tensor | None

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("bias", None, persistent=False)

    def tabulate(self) -> None:
        """Lay the biases out once, instead of at every call."""
        self.bias = self._biases()

    def _biases(self) -> Tensor:
        """[heads, tokens, tokens]; entry `dy * window + dx` of the parameter is for tokens that far apart."""
        places = torch.arange(self.window, device=self.attention_biases.device)
        apart = (places[:, None] - places).abs()
        index = apart[:, None, :, None] * self.window + apart[None, :, None, :]
        tokens = self.window * self.window
        return self.attention_biases[:, index.reshape(tokens, tokens)]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, height, width, C] in and out."""
        height, width, channels = x.shape[1:]
        windows = to_windows(x, self.window)
        qkv = self.qkv(self.norm(windows)).reshape(-1, self.window**2, self.heads, 3, channels // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        bias = self._biases() if self.bias is None else self.bias
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return from_windows(self.proj(y.transpose(1, 2).reshape(windows.shape)), height, width)
