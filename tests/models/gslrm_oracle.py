"""GS-LRM in a page of torch, with FaceLift's tensor names: the oracle of conversion and network."""

import torch
from torch import nn
from torch.nn import functional as F


def linear(i, o):
    return nn.Linear(i, o, bias=False)


class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, None, 1e-5)


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.to_qkv, self.fc = heads, linear(d, 3 * d), linear(d, d)

    def forward(self, x):
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, -1)
        )
        return self.fc(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mlp = nn.Sequential(linear(d, 4 * d), nn.GELU(), linear(4 * d, d))

    def forward(self, x):
        return self.mlp(x)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.norm1, self.norm2 = Norm(d), Norm(d)
        self.attn, self.mlp = Attention(d, heads), Mlp(d)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Upsampler(nn.Module):
    def __init__(self, d, channels):
        super().__init__()
        self.layernorm, self.linear = Norm(d), linear(d, channels)

    def forward(self, x):
        return self.linear(self.layernorm(x))


class TorchGSLRM(nn.Module):
    """images [B,V,H,W,3], K, c2w -> dict of means, quats, log_scales, opacity_logits, sh."""

    def __init__(self, d=32, d_head=16, layers=2, patch=4, n_free=2):
        super().__init__()
        self.patch, self.n_free = patch, n_free
        self.gaussian_position_embeddings = nn.Parameter(torch.randn(n_free, d) * 0.02)
        self.patch_embedder = nn.Sequential(nn.Identity(), linear(9 * patch**2, d))
        self.input_layer_norm = Norm(d)
        self.transformer_layers = nn.ModuleList(Block(d, d // d_head) for _ in range(layers))
        self.gaussian_upsampler = Upsampler(d, 14)
        self.pixel_gaussian_decoder = nn.Sequential(Norm(d), linear(d, 14 * patch**2))

    def patches(self, x):
        b, v, h, w, c = x.shape
        p = self.patch
        x = x.reshape(b, v, h // p, p, w // p, p, c).permute(0, 1, 2, 4, 3, 5, 6)
        return x.reshape(b, -1, p * p * c)

    def forward(self, images, K, c2w):
        b, _, h, w, _ = images.shape
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        K = K[..., None, None, :, :]
        x = (x - K[..., 0, 2]) / K[..., 0, 0]
        y = (y - K[..., 1, 2]) / K[..., 1, 1]
        local = F.normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1)
        d = F.normalize(torch.einsum("bvij,bvhwj->bvhwi", c2w[..., :3, :3], local), dim=-1)
        o = c2w[:, :, None, None, :3, 3].expand_as(d)
        t0 = -(o * d).sum(-1, keepdim=True)
        tokens = self.patch_embedder(self.patches(torch.cat([2 * images - 1, d, o + t0 * d], -1)))
        free = self.gaussian_position_embeddings.expand(b, -1, -1)
        tokens = self.input_layer_norm(torch.cat([free, tokens], 1))
        for block in self.transformer_layers:
            tokens = block(tokens)
        raw = self.pixel_gaussian_decoder(tokens[:, self.n_free :]).reshape(b, -1, 14)
        depth = torch.sigmoid(raw[..., :3].mean(-1, keepdim=True))
        o, d, t0 = (self.patches(t).reshape(b, -1, t.shape[-1]) for t in (o, d, t0))
        means = o + (1.8 * (2 * depth - 1) + t0) * d
        free = self.gaussian_upsampler(tokens[:, : self.n_free])
        raw = torch.cat(
            [torch.cat([free[..., :3], means], 1), torch.cat([free, raw], 1)[..., 3:]], -1
        )
        return {
            "means": raw[..., :3],
            "sh": raw[..., None, 3:6],
            "log_scales": (raw[..., 6:9] - 2.3).clamp(max=-1.2),
            "quats": raw[..., 9:13],
            "opacity_logits": raw[..., 13] - 2.0,
        }
