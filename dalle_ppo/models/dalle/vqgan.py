"""VQGAN: images to codes (for training) and codes to images (for sampling).

The decoder half has the parameter names of the `min-dalle` package's detokenizer, so the published
`detoker.pt` loads unchanged.

Source: https://github.com/CompVis/taming-transformers/blob/master/taming/modules/diffusionmodules/model.py
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_ppo.models.dalle.presets import VqganConfig


def silu(x: Tensor) -> Tensor:
    """SiLU, in place if no gradient is needed: the largest feature maps determine the memory per image."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # In one expression, so that no name keeps a full-size map longer than it is needed.
        h = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return h.add_(self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """Single-head attention over the pixels of a feature map."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class MiddleLayer(nn.Module):
    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        if attention:
            self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x)
        return self.block_2(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
            return conv_of_doubled(x, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def conv_of_doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3 x 3 convolution of `x` enlarged to twice its size, without enlarging it.

    At most 2 x 2 of the nine pixels under the kernel differ, so each of the four kinds of pixel needs
    2 x 2 sums of weights: 4 products instead of 9, and no full-size input map.

    Args:
        x: [N, C, H, W].
        weight: [D, C, 3, 3].
        bias: [D].

    Returns:
        [N, D, 2 H, 2 W], channels last.
    """
    (n, _, height, width), depth = x.shape, len(weight)
    out = x.new_empty(n, 2 * height, 2 * width, depth).permute(0, 3, 1, 2)
    for i, j in itertools.product((0, 1), (0, 1)):
        pairs = torch.stack((weight[:, :, : 1 + i].sum(2), weight[:, :, 1 + i :].sum(2)), 2)
        kernel = torch.stack((pairs[..., : 1 + j].sum(3), pairs[..., 1 + j :].sum(3)), 3)
        part = F.conv2d(x, kernel, bias, padding=1)[:, :, i : i + height, j : j + width]
        out[:, :, i::2, j::2] = part
    return out


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Resnet blocks of one resolution, then a change of resolution if there is one."""

    def __init__(self, channels: list[int], groups: int, attention: bool, resample: nn.Module | None):
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.block = nn.ModuleList(ResnetBlock(m, n, groups) for m, n in pairs)
        if attention:
            self.attn = nn.ModuleList(AttentionBlock(n, groups) for _, n in pairs)
        if isinstance(resample, Upsample):
            self.upsample = resample
        elif resample is not None:
            self.downsample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if hasattr(self, "attn"):
                x = self.attn[i](x)
        for name in ("upsample", "downsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Decoder(nn.Module):
    """Features [N, code_width, g, g] to pixels [N, 3, H, W], about 0..1."""

    def __init__(self, config: VqganConfig):
        super().__init__()
        c, g, last = config.channels, config.norm_groups, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.code_width, c[-1], 3, padding=1)
        self.mid = MiddleLayer(c[-1], g, config.attention)
        self.up = nn.ModuleList(
            Level(
                [c[min(i + 1, last)]] + [c[i]] * (config.blocks_per_level + 1),
                g,
                config.attention and i == last,
                Upsample(c[i]) if i > 0 else None,
            )
            for i in range(len(c))
        )
        self.norm_out = nn.GroupNorm(g, c[0])
        self.conv_out = nn.Conv2d(c[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            z = level(z)
        return self.conv_out(silu(self.norm_out(z)))


class Encoder(nn.Module):
    """Pixels [N, 3, H, W] in 0..1 to features [N, code_width, g, g]."""

    def __init__(self, config: VqganConfig):
        super().__init__()
        c, g, last = config.channels, config.norm_groups, len(config.channels) - 1
        self.conv_in = nn.Conv2d(3, c[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                [c[max(i - 1, 0)]] + [c[i]] * config.blocks_per_level,
                g,
                config.attention and i == last,
                Downsample(c[i]) if i < last else None,
            )
            for i in range(len(c))
        )
        self.mid = MiddleLayer(c[-1], g, config.attention)
        self.norm_out = nn.GroupNorm(g, c[-1])
        self.conv_out = nn.Conv2d(c[-1], config.code_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class VqganDecoder(nn.Module):
    """Codes to images: what sampling needs, and all that min-dalle's `detoker.pt` holds."""

    def __init__(self, config: VqganConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_codes, config.code_width)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.code_width, 1)
        self.decoder = Decoder(config)

    def from_features(self, z: Tensor) -> Tensor:
        """Quantised features [N, code_width, g, g] to unclipped pixels [N, 3, H, W]."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, tokens: Tensor) -> Tensor:
        """Draws images.

        Args:
            tokens: int64 [N, T], row by row of the token grid.

        Returns:
            Pixels, float [N, 3, H, W] in 0..1.
        """
        grid = self.config.grid_size
        z = self.embedding(tokens).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        # Channels last is a third faster: convolutions and upsampling need no change of layout between them.
        images = self.from_features(z.contiguous(memory_format=torch.channels_last))
        return images.clamp(0, 1).contiguous()

    @property
    def images_at_once(self) -> int:
        """64 of 64 x 64 pixels, or as many pixels in other sizes: 4 for the published model; 16 on a GPU."""
        pixels = 64 * 64**2 * (4 if self.embedding.weight.device.type == "cuda" else 1)
        return max(1, pixels // self.config.image_size**2)

    @torch.no_grad()
    def decode_uint8(self, tokens: Tensor, microbatch_size: int | None = None) -> Tensor:
        """`forward` in microbatches, rounded to uint8 [N, 3, H, W].

        Args:
            tokens: int64 [N, T].
            microbatch_size: images at a time; by default `images_at_once`.
        """
        chunks = tokens.split(microbatch_size or self.images_at_once)
        parts = [self(chunk).float().mul(255).round().byte() for chunk in chunks]
        return torch.cat(parts)


class VqganEncoder(nn.Module):
    """Images to features; `nearest_codes` against the decoder's codebook turns them into tokens."""

    def __init__(self, config: VqganConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.code_width, config.code_width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images, float [N, 3, H, W] in 0..1, to features [N, code_width, g, g]."""
        return self.quant_conv(self.encoder(images))


def nearest_codes(features: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook row.

    Args:
        features: [..., E].
        codebook: [V, E].

    Returns:
        int64 [...].
    """
    # |f - c|^2 without |f|^2, which is the same for every code.
    return torch.argmin(codebook.square().sum(1) - 2 * features @ codebook.T, dim=-1)


@torch.no_grad()
def encode_images(encoder: VqganEncoder, decoder: VqganDecoder, images: Tensor) -> Tensor:
    """Encodes images, float [N, 3, H, W] in 0..1, to tokens, int64 [N, T]."""
    features = encoder(images).permute(0, 2, 3, 1).flatten(1, 2)
    return nearest_codes(features.float(), decoder.embedding.weight.float())
