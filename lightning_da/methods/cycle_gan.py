from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS
from lightning_da.errors import check_range
from lightning_da.gather import gather
from lightning_da.losses.games import Game, discriminator_loss, generator_loss, with_fixed_weights
from lightning_da.losses.precision import full_precision
from lightning_da.methods.base import samples_of
from lightning_da.methods.discriminators import watch_pictures
from lightning_da.methods.pictures import DrawsPictures
from lightning_da.methods.watched import WatchedModule
from lightning_da.networks.pictures import patch_discriminator, translator

OTHER = dict(zip(DOMAINS, reversed(DOMAINS), strict=True))
CLIP = 0.1  # the largest weight of a discriminator in the game of Wasserstein


class CycleGAN(DrawsPictures, WatchedModule):
    """Translates pictures of the source into the style of the target, and classifies the translations.

    Two translators learn without pairs: the discriminator of the other domain takes translations for its own, and one
    translator undoes the other. The classifier learns the labels of translated pictures of the source, reads the target
    as it is, and sends no gradient into the translators.

    Source: Zhu et al., "Unpaired image-to-image translation using cycle-consistent adversarial networks", ICCV 2017,
    equations 1 to 3 and, for the identity, section 5.2. DiscoGAN (Kim et al., ICML 2017) and DualGAN (Yi et al., ICCV
    2017) are other choices of the first arguments.
    https://arxiv.org/abs/1703.10593, https://arxiv.org/abs/1703.05192, https://arxiv.org/abs/1704.02510

    Args:
        game: What discriminators and translators make small (see `discriminator_loss`).
        cycle: The distance of a picture from its cycle, the mean absolute or squared difference.
        cycle_weight: Weight of this distance.
        identity_weight: Weight of the distance of a picture from its translation into its own style; 0 leaves it out.
        width: Number of feature maps in a translator, and after the first layer of a discriminator.
        train_on: `both` also classifies the labelled pictures of the target.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If samples are no pictures, or a number is out of range.
    """

    reads_unlabelled = True

    def __init__(
        self,
        game: Game = "least_squares",
        cycle: Literal["absolute", "squared"] = "absolute",
        cycle_weight: float = 10.0,
        identity_weight: float = 0.0,
        width: int = 16,
        train_on: Literal["source", "both"] = "source",
        **kwargs: Any,
    ) -> None:
        super().__init__(train_on=train_on, **kwargs)
        self._weights = {"cycle": cycle_weight, "identity": identity_weight}
        for name, value in self._weights.items():
            check_range(f"{name}_weight", value, 0)
        check_range("width", width, 1)
        self.unlabelled = tuple(domain for domain in DOMAINS if domain not in self.supervised)
        self._game = game
        self._distance = nn.functional.l1_loss if cycle == "absolute" else nn.functional.mse_loss
        self.translators = nn.ModuleDict({to: translator(self.input_shape, width) for to in DOMAINS})
        self.discriminators = nn.ModuleDict({of: patch_discriminator(self.input_shape, width) for of in DOMAINS})
        self._domain: str | Mapping[str, int] = "target"

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        super().set_domain(domain)
        self._domain = domain

    def features(self, x: Tensor) -> Tensor:
        x, translate = self.standardize(x), self.translators["target"]
        if self._domain == "source":
            x = translate(x).detach()
        elif not isinstance(self._domain, str):
            source, rest = x.tensor_split([self._domain.get("source", 0)])
            x = torch.cat([translate(source).detach(), rest])
        return self.bottleneck(self.backbone(x))  # type: ignore[no-any-return]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        losses = self.translation_losses({domain: self.read(samples_of(batch[domain]), domain) for domain in DOMAINS})
        self.log_dict({f"train/{name}_loss": value for name, value in losses.items()})
        return loss + torch.stack([self._weights.get(name, 1) * value for name, value in losses.items()]).sum()

    def translation_losses(self, real: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of translators and discriminators, each the sum over both domains: scalars over all processes.

        Args:
            real: Samples of each domain in this process, as the backbone reads them, shape (n, *input_shape).
        """
        made = {to: self.translators[to](real[OTHER[to]]) for to in DOMAINS}
        games = []
        found: dict[str, list[Tensor]] = {"discriminator": [], "translator": [], "cycle": [], "identity": []}
        for domain, translate in self.translators.items():
            x, discriminator = real[domain], self.discriminators[domain]
            of_real, of_made = (gather(discriminator(part)) for part in (x, made[domain].detach()))
            games.append((of_real, of_made, x.flatten(1), made[domain].flatten(1)))
            found["discriminator"].append(discriminator_loss(of_real, of_made, self._game))
            taken = gather(with_fixed_weights(discriminator, made[domain]))
            found["translator"].append(generator_loss(taken, self._game))
            for name, start in (("cycle", made[OTHER[domain]]), ("identity", x)):
                if self._weights[name] > 0:
                    found[name].append(full_precision(self._distance)(gather(translate(start)), gather(x)))
        self._watched = watch_pictures(games, self._game != "wasserstein") if self.logs_now else None
        return {name: torch.stack(parts).sum() for name, parts in found.items() if parts}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # not a later hook: checkpoints are written before it
        for weights in self.discriminators.parameters() if self._game == "wasserstein" else ():
            weights.data.clamp_(-CLIP, CLIP)

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        found = {"samples": self.read(x, domain)}
        found["translated"] = self.translators[OTHER[domain]](found["samples"])
        return found | {"and back": self.translators[domain](found["translated"])}
