"""The losses of generative adversarial networks: real samples are told from made ones."""

from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from lightning_da.losses.precision import full_precision

Game = Literal["cross_entropy", "least_squares", "wasserstein"]
"""How a discriminator and a generator play."""


@full_precision
def discriminator_loss(real: Tensor, made: Tensor, game: Game = "cross_entropy") -> Tensor:
    """What a discriminator makes small: its answers are high for real samples and low for made ones.

    With `cross_entropy` it is -log d on real samples and -log(1 - d) on made ones, d the logistic function of the
    answers; with `least_squares` it is (a - 1)^2 and a^2 for answers a; with `wasserstein` it is -a and a. The mean
    over real answers plus the mean over made ones.

    Source: Goodfellow et al., "Generative adversarial nets", NeurIPS 2014, equation 1; Mao et al., "Least squares
    generative adversarial networks", ICCV 2017, equation 2; Arjovsky et al., "Wasserstein generative adversarial
    networks", ICML 2017, equation 3.
    https://arxiv.org/abs/1406.2661, https://arxiv.org/abs/1611.04076, https://arxiv.org/abs/1701.07875

    Args:
        real: Answers for real samples, any shape, floating point.
        made: Answers for made samples, any shape, floating point.
        game: The kind of loss.

    Returns:
        A scalar, float32 or better.

    Examples:
        >>> import torch
        >>> undecided = torch.zeros(4, 1)
        >>> round(discriminator_loss(undecided, undecided).item(), 3)
        1.386
        >>> discriminator_loss(undecided, undecided, "least_squares").item()
        1.0
    """
    if game == "cross_entropy":
        return softplus(-real).mean() + softplus(made).mean()
    if game == "least_squares":
        return (real - 1).square().mean() + made.square().mean()
    return made.mean() - real.mean()


@full_precision
def generator_loss(made: Tensor, game: Game = "cross_entropy") -> Tensor:
    """What a generator makes small: the discriminator's answers for its samples become those for real ones.

    Source: as for `discriminator_loss`; with `cross_entropy` it is -log d (Goodfellow et al., section 3), whose
    gradient does not vanish where the discriminator is right.

    Args:
        made: Answers for made samples, any shape, floating point.
        game: The kind of loss.

    Returns:
        A scalar, float32 or better.

    Examples:
        >>> import torch
        >>> round(generator_loss(torch.zeros(4, 1)).item(), 3)
        0.693
        >>> generator_loss(torch.ones(4, 1), "least_squares").item()
        0.0
    """
    if game == "cross_entropy":
        return softplus(-made).mean()
    return (made - 1).square().mean() if game == "least_squares" else -made.mean()


@full_precision
def feature_matching(real: Tensor, made: Tensor) -> Tensor:
    """Squared distance between the mean features of real and of made samples.

    Source: Salimans et al., "Improved techniques for training GANs", NeurIPS 2016, section 3.1.
    https://arxiv.org/abs/1606.03498

    Args:
        real: Features, shape (n, d), floating point.
        made: Features, shape (m, d), floating point.

    Returns:
        A scalar, float32 or better.

    Examples:
        >>> import torch
        >>> feature_matching(torch.ones(3, 2), torch.zeros(5, 2)).item()
        2.0
    """
    return (real.mean(dim=0) - made.mean(dim=0)).square().sum()


@full_precision
def one_more_class(logits: Tensor) -> Tensor:
    """The log-odds that a sample is of any class, against one more class whose logit is 0: log sum_k exp l_k.

    Source: Salimans et al., NeurIPS 2016, section 5.
    https://arxiv.org/abs/1606.03498

    Args:
        logits: Shape (n, num_classes), floating point.

    Returns:
        Shape (n,), float32 or better.

    Examples:
        >>> import torch
        >>> one_more_class(torch.tensor([[0.0, -50.0], [0.0, 0.0]])).exp()
        tensor([1., 2.])
    """
    return logits.logsumexp(dim=1)


def with_fixed_weights(network: nn.Module, x: Tensor) -> Tensor:
    """The output of a network whose parameters get no gradient; `x` gets one.

    Args:
        network: The network.
        x: Its input.

    Examples:
        >>> import torch
        >>> network, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
        >>> with_fixed_weights(network, x).sum().backward()
        >>> x.grad is not None, network.weight.grad is None
        (True, True)
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    found: Tensor = functional_call(network, parameters, (x,))
    return found
