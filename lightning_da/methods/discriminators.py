"""The domain discriminators of adversarial methods."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_da.losses.adversarial import domain_classification
from lightning_da.networks.backbones import FeedForward


def discriminators(widths: list[int], hidden: tuple[int, ...], batch_norm: bool = False) -> nn.ModuleList:
    """A domain discriminator (n, width) -> (n, 1) for each adapted layer.

    Args:
        widths: Widths of the adapted layers.
        hidden: Widths of the hidden layers in each discriminator; without any it is linear.
        batch_norm: Whether each hidden layer has batch normalisation.
    """
    if not hidden:
        return nn.ModuleList(nn.Linear(width, 1) for width in widths)
    return nn.ModuleList(
        nn.Sequential(FeedForward((width,), list(hidden), batch_norm=batch_norm), nn.Linear(hidden[-1], 1))
        for width in widths
    )


def watch_discriminators(
    source: Sequence[Tensor], target: Sequence[Tensor], discriminators: Iterable[nn.Module]
) -> dict[str, Tensor]:
    """Accuracy and mean loss of domain discriminators, each for the features (n, d) of a layer, for `Signs.add`."""
    right, losses = [], []
    for s, t, discriminator in zip(source, target, discriminators, strict=True):
        right.append(torch.cat([discriminator(s) > 0, discriminator(t) <= 0]))
        losses.append(domain_classification(s, t, discriminator))
    return {
        "discriminator_acc": torch.cat(right).float().mean(),
        "discriminator_loss": torch.stack(losses).mean(),
    }


@torch.no_grad()
def watch_pictures(games: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], told: bool = True) -> dict[str, Tensor]:
    """Whether made pictures are told from real ones, and how much they differ from each other, for `Signs.add`.

    Args:
        games: Of each discriminator: its answers for real and for made pictures, any shape, then the values of real and
            of made pictures, shape (n, k). Answers are counted as right on their side of the middle of both means. One
            picture has no spread.
        told: Whether it counts that made pictures are told from real ones: in the game of Wasserstein it does not.
    """
    right, spreads = [], []
    for real, made, real_values, made_values in games:
        undecided = (real.mean() + made.mean()) / 2
        right += [(real > undecided).flatten(), (made <= undecided).flatten()]
        if min(len(made_values), len(real_values)) > 1:
            spreads.append(made_values.std(dim=0).mean() / real_values.std(dim=0).mean().clamp(min=1e-12))
    found = {"real_or_made_acc": torch.cat(right).float().mean()} if told else {}
    return found | ({"made_spread": torch.stack(spreads).min()} if spreads else {})


class MultiLayerDiscriminator(nn.Module):
    """A domain discriminator of several layers (n, sum of widths) -> (n, 1), which meets one after the other.

    Its hidden layer for a layer of the network reads this and the hidden layer before.

    Source: Luo et al., "Label efficient learning of transferable representations across domains and tasks", NIPS 2017,
    section 3.2. The decay of the hidden layer before is left to its weights.
    https://arxiv.org/abs/1712.00123

    Args:
        widths: Widths of the adapted layers, in order of depth.
        hidden: Width of each hidden layer.
    """

    def __init__(self, widths: list[int], hidden: int) -> None:
        super().__init__()
        self.widths = list(widths)
        before = [0] + [hidden] * (len(widths) - 1)
        self.hidden = nn.ModuleList(nn.Linear(width + more, hidden) for width, more in zip(widths, before, strict=True))
        self.output = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 1), positive for source, of the adapted layers side by side, (n, sum of widths)."""
        state = x[:, :0]
        for part, layer in zip(x.split(self.widths, dim=1), self.hidden, strict=True):
            state = layer(torch.cat([part, state], dim=1)).relu()
        logits: Tensor = self.output(state)
        return logits
