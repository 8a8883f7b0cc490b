"""The PyTorch twin of `tests.weights.toy`: the same model under its published key names."""

import torch
from torch import nn

from tests.weights import toy


class Block(nn.Module):
    def __init__(self, config: toy.ToyConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=config.scaling.epsilon)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(config.width, 3 * config.width)})
        self.mlp = nn.ModuleDict(
            {
                "up": nn.Linear(config.width, config.hidden),
                "act": nn.SiLU(),
                "down": nn.Linear(config.hidden, config.width, bias=False),
            }
        )

    def forward(self, x):
        q, k, v = self.attn["qkv"](self.norm(x)).chunk(3, dim=-1)
        h = self.mlp["act"](self.mlp["up"](torch.sigmoid(q) * k + v))
        return x + self.mlp["down"](h)


class ToyModel(nn.Module):
    """Same function, same keys; filled with noise."""

    def __init__(self, config: toy.ToyConfig, seed: int = 0):
        super().__init__()
        self.embed = nn.Embedding(config.vocab, config.width)
        self.scale = nn.Parameter(torch.ones(()))
        self.patch = nn.Conv2d(toy.CHANNELS, config.width, toy.PATCH, stride=toy.PATCH)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.Linear(config.width, config.out)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, ids, image):  # [B, T], [B, H, W, C] -> [B, T, out]
        seen = self.patch(image.permute(0, 3, 1, 2)).mean((2, 3))
        x = self.embed(ids) + self.scale * seen[:, None]
        for block in self.blocks:
            x = block(x)
        return self.head(x)
