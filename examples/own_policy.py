"""The loss in a policy of your own: any network with patch tokens and attention of words over them, any action head.

The lines between rules are the method's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from la_reconvla import MaskedReconstruction, language_reaches_patches

WIDTH, GRID, PATCH, VOCABULARY = 32, (4, 4), 16, 100


class MyPolicy(nn.Module):
    """A convolutional stem, one transformer layer over patches and words, and a head that gives actions directly."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.Conv2d(16, WIDTH, 4, 4))
        self.places = nn.Parameter(torch.randn(GRID[0] * GRID[1], WIDTH) * 0.1)
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.words_look = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mix = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.act = nn.Linear(2 * WIDTH, 7)

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions [b 7], patch tokens [b n d], attention [b h t n], and the embedded words [b t d]."""
        patches, words, padding = self.stem(pixels).flatten(2).mT + self.places, self.words(ids), ids == 0
        seen, attention = self.words_look(words, patches, patches, average_attn_weights=False)
        both = torch.cat([patches, words + seen], dim=1)
        hidden = torch.cat([torch.zeros(patches.shape[:2], dtype=torch.bool), padding], dim=1)
        states = self.mix(both, src_key_padding_mask=hidden)
        tokens, answers = states[:, : patches.shape[1]], states[:, patches.shape[1] :]
        told = answers.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True)
        return self.act(torch.cat([tokens.mean(1), told], dim=1)), tokens, attention, words


def main(steps: int = 20) -> list[float]:
    """Train on one random batch; the reconstruction loss of each step."""
    torch.manual_seed(0)
    images = torch.rand(8, 3, GRID[0] * PATCH, GRID[1] * PATCH)  # floats in [0, 1], and said so below
    ids = torch.randint(1, VOCABULARY, (8, 6)) * (torch.arange(6) < torch.randint(3, 7, (8, 1)))  # 0 is padding
    wanted = torch.rand(8, 7) * 2 - 1

    policy = MyPolicy()
    # ----------------------------------------------------------------
    reconstruct = MaskedReconstruction(WIDTH, GRID, PATCH, pixels="unit")
    # ----------------------------------------------------------------
    optimizer = torch.optim.AdamW([*policy.parameters(), *reconstruct.parameters()], lr=1e-3)
    losses = []
    for step in range(steps):
        actions, patch_tokens, attention, words = policy(images, ids)
        if step == 0 and not language_reaches_patches(patch_tokens, words):
            raise SystemExit("the patches do not depend on the words")
        action_loss = (actions - wanted).square().mean()
        # ----------------------------------------------------------------
        loss, _mask, _scores = reconstruct(patch_tokens, images, attention, ids != 0)
        total = action_loss + 0.5 * loss
        # ----------------------------------------------------------------
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"reconstruction {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps; acting needs no `reconstruct`")
    return losses


if __name__ == "__main__":
    main()
