from torch import Tensor
from torch.nn.functional import mse_loss

from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.reconstruction import ReconstructionModule


class DRCN(ReconstructionModule):
    """Deep reconstruction-classification network: a shared encoder classifies the source and reconstructs the target.

    The domain loss is the mean squared error of the target alone. The paper's `lambda L_c + (1 - lambda) L_r` is this
    sum with `domain_weight` (1 - lambda) / lambda, up to the scale of the whole. Samples are reconstructed as they are:
    the noise and the moved copies of the paper are left out, and the decoder is fully connected.

    Source: Ghifary et al., "Deep reconstruction-classification networks for unsupervised domain adaptation", ECCV 2016,
    equation 5. https://arxiv.org/abs/1607.03516

    Args:
        **kwargs: Arguments of `ReconstructionModule`.
    """

    can_regress = True

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:  # noqa: ARG002
        features, x = target.layers
        return mse_loss(self.decoder(features), x)

    def reconstructions(self, x: Tensor, domain: str) -> dict[str, Tensor]:
        self.set_domain(domain)
        found = {"samples": self.standardize(x), "reconstructed": self.decoder(self.features(x)).view(x.shape)}
        self.set_domain("target")
        return found
