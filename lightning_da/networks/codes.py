"""Backbones that are fitted to samples without labels before training, and have no weights to train."""

import warnings
from collections.abc import Callable, Iterable
from math import prod

import torch
from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from lightning_da.errors import ConfigError, check_range
from lightning_da.networks.backbones import Backbone


class Raw(Backbone):
    """The values of a sample as they are, flattened: what learnt features are compared with.

    Args:
        input_shape: Shape of one sample.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.num_features = [], prod(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, num_features) of samples (B, *input_shape)."""
        return x.flatten(1)


class _Fitted(Backbone):
    """Features with `components` values, fitted to some training samples of the source.

    Args:
        input_shape: Shape of one sample, which is flattened.
        components: Number of components, and width of the output.
        samples: The largest number of samples that are read, evenly over the training samples.
        seed: Seed of the fit.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, input_shape: tuple[int, ...], components: int, samples: int = 3000, seed: int = 0) -> None:
        super().__init__()
        check_range("components", components, 1)
        check_range("samples", samples, 2)
        self.layers, self.num_features, self._samples, self._seed = [], components, samples, seed
        self.register_buffer("mean", torch.zeros(prod(input_shape)))
        self.register_buffer("components", torch.zeros(components, prod(input_shape)))

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> None:
        x = torch.cat([part.flatten(1) for part in samples("source")])
        x = x[torch.linspace(0, len(x) - 1, min(len(x), self._samples)).long()].float()
        self.mean.copy_(x.mean(dim=0))
        self.components.copy_(self.learn(x - self.mean))

    def learn(self, x: Tensor) -> Tensor:
        """Components (components, d) of centred samples (n, d)."""
        raise NotImplementedError


class PrincipalComponents(_Fitted):
    """Principal components of the source's samples. For the arguments see `SparseCoding`.

    Raises:
        ConfigError: If there are more components than samples or values; known when a fit begins.
    """

    def learn(self, x: Tensor) -> Tensor:
        if self.num_features > min(x.shape):
            raise ConfigError(f"components: {self.num_features} are more than {min(x.shape)}, samples or values")
        return torch.from_numpy(PCA(self.num_features, random_state=self._seed).fit(x.numpy()).components_)

    def forward(self, x: Tensor) -> Tensor:
        """Computes features (B, components) of samples (B, *input_shape)."""
        return (x.flatten(1) - self.mean) @ self.components.T


class SparseCoding(_Fitted):
    """Sparse codes of samples: `min_s 1/2 ||x - mean - s B||^2 + penalty ||s||_1`, B being learnt from the source.

    The codes are found by `steps` steps of FISTA (Beck and Teboulle, "A fast iterative shrinkage-thresholding
    algorithm for linear inverse problems", SIAM J. Imaging Sciences 2009, section 4).

    Source: Raina et al., "Self-taught learning: transfer learning from unlabeled data", ICML 2007, equations 1 and 2;
    B has rows of at most unit length.
    https://doi.org/10.1145/1273496.1273592, https://doi.org/10.1137/080716542

    Args:
        input_shape: Shape of one sample, which is flattened.
        components: Number of rows of B, and width of the output.
        penalty: Weight of the absolute values.
        steps: Steps of FISTA.
        samples: The largest number of samples that B is learnt from, evenly over the training samples.
        seed: Seed of the fit.

    Raises:
        ConfigError: If a number is out of range.
    """

    lipschitz: Tensor

    def __init__(
        self,
        input_shape: tuple[int, ...],
        components: int = 256,
        penalty: float = 1.0,
        steps: int = 100,
        samples: int = 3000,
        seed: int = 0,
    ) -> None:
        super().__init__(input_shape, components, samples, seed)
        check_range("penalty", penalty, above=0)
        check_range("steps", steps, 1)
        self._penalty, self._steps = penalty, steps
        self.register_buffer("lipschitz", torch.ones(()))

    def learn(self, x: Tensor) -> Tensor:
        learner = MiniBatchDictionaryLearning(
            self.num_features,
            alpha=self._penalty,
            fit_algorithm="cd",
            batch_size=64,
            random_state=self._seed,
            max_iter=2,
        )
        with warnings.catch_warnings():  # the codes of a batch are on the way: those of the network are of `forward`
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = torch.from_numpy(learner.fit(x.double().numpy()).components_).float()  # float32 diverges
        self.lipschitz.copy_(torch.linalg.matrix_norm(found, 2) ** 2)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Computes codes (B, components) of samples (B, *input_shape)."""
        with torch.no_grad():
            pulled = (x.flatten(1) - self.mean) @ self.components.T
            gram, step = self.components @ self.components.T, 1 / self.lipschitz
            codes = ahead = torch.zeros_like(pulled)
            t = 1.0
            for _ in range(self._steps):
                moved = ahead - step * (ahead @ gram - pulled)
                before, codes = codes, moved.sign() * (moved.abs() - step * self._penalty).clamp(min=0)
                t, last = (1 + (1 + 4 * t**2) ** 0.5) / 2, t
                ahead = codes + (last - 1) / t * (codes - before)
        return codes
