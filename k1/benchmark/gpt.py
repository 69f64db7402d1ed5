"""A plain GPT in the manner of nanoGPT: what a short, hand-written model costs beside a library's."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each after a normalisation and around a residual."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        rows, length, width = states.shape
        parts = self.query_key_value(self.norm_1(states)).split(width, dim=2)
        query, key, value = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.output(attended.transpose(1, 2).reshape(rows, length, width))
        return states + self.down(functional.gelu(self.up(self.norm_2(states))))


class GPT(nn.Module):
    """A GPT with learned positions and an output layer of its own, of about `parameters` parameters in all.

    What the embeddings and the attention leave of `parameters` goes into the feed-forward layers.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int, parameters: int) -> None:
        super().__init__()
        fixed = 2 * vocabulary * width + length * width + layers * (4 * width**2 + 2 * width) + width
        inner = round((parameters - fixed) / (2 * layers * width))
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, inner) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats per token, of each token of `labels` but the first, (rows, length) token ids."""
        states = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        logits = self.head(self.norm(self.blocks(states)))[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
