from typing import Any

from lightning_da.errors import ConfigError
from lightning_da.methods.dann import DANN
from lightning_da.networks.memory import MemoryNetwork


class AMN(DANN):
    """Adversarial memory network: attention to words that tell the classes apart and do not tell the domains apart.

    The memory networks of the classifier and of the domain discriminator share all parameters, so that they are one
    network, `MemoryNetwork`, with a linear discriminator on its output behind a reversed gradient: DANN on attention.

    Source: Li et al., "End-to-end adversarial memory network for cross-domain sentiment classification", IJCAI 2017.
    https://www.ijcai.org/proceedings/2017/0311.pdf

    Args:
        discriminator: Widths of the hidden layers in the domain discriminator; the paper has none.
        **kwargs: Arguments of `DANN`.

    Raises:
        ConfigError: If the backbone is no memory network.
    """

    can_regress = False

    def __init__(self, discriminator: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(discriminator=discriminator, **kwargs)
        if not isinstance(self.backbone, MemoryNetwork):
            raise ConfigError(
                "AMN reads the words of sentences with a memory network; give --config backbone/memory_network.yaml "
                "after --config data/sentences.yaml"
            )
