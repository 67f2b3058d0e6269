"""The domains and splits of the data, and what a method reads of them."""

from typing import Any, NamedTuple

DOMAINS = ("source", "target")
SPLITS = ("train", "val", "test")


class Roles(NamedTuple):
    """Which domains, `source` or `target`, a training step reads.

    Attributes:
        supervised: Domains read with labels.
        unlabelled: Domains read without labels.
        processes: Number of training processes.
        units_differ: Whether the domains may have different units, because each is scaled by itself.
        reads_unlabelled: Whether training reads the samples without a label, too, of the domains in `supervised`.
        fewest_samples: The smallest batch of a domain, on each process.
        reads_words: Whether samples are sentences; None if the network is not known.
        tasks_differ: Whether source and target may have different classes.
        modalities_differ: Whether samples of source and target may have different shapes and units.
        segments: Whether the answers are masks; None if the method is not known.
    """

    supervised: tuple[str, ...] = ("source",)
    unlabelled: tuple[str, ...] = ("target",)
    processes: int = 1
    units_differ: bool = False
    reads_unlabelled: bool = False
    fewest_samples: int = 1
    reads_words: bool | None = None
    tasks_differ: bool = False
    modalities_differ: bool = False
    segments: bool | None = None

    @classmethod
    def of(cls, module: Any, processes: int) -> "Roles":
        """The roles of a module; those of a method of adaptation if it does not name its own."""
        default = cls()
        return cls(
            getattr(module, "supervised", default.supervised),
            getattr(module, "unlabelled", default.unlabelled),
            processes,
            getattr(module, "scales_per_domain", False),
            getattr(module, "reads_unlabelled", False),
            getattr(module, "fewest_samples", 1),
            getattr(module, "reads_words", None),
            getattr(module, "tasks_differ", False),
            getattr(module, "modalities_differ", False),
            getattr(module, "segments", None),
        )
