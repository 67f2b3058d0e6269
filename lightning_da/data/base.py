"""The base class for the data of a source and a target domain."""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

from lightning_da.data.checks import (
    Look,
    check_names,
    check_ranges,
    check_shapes,
    differing,
    empty,
    look_at,
    same_samples,
    warn_of_missing_classes,
)
from lightning_da.data.class_sets import UNKNOWN_CLASS, ClassSets, joined, listed, only, setting
from lightning_da.data.datasets import UNKNOWN, DataError, Selection, TensorDomain, relabel, select
from lightning_da.data.descriptions import Descriptions, read_descriptions
from lightning_da.data.labels import draw_labelled
from lightning_da.data.loading import (
    Drawn,
    Mixed,
    Share,
    Shuffle,
    StatelessLoader,
    collate,
    even_batch,
    in_chunks,
    permutation,
    seed_of_run,
)
from lightning_da.data.roles import DOMAINS, SPLITS, Roles
from lightning_da.data.several import (
    FOLDS,
    JoinedTensors,
    Mixture,
    Weights,
    WithDomain,
    join,
    proximity,
    shares,
    vectors,
)
from lightning_da.errors import check_range
from lightning_da.inputs import Input, Numbers
from lightning_da.names import joined_name, members, metric_names

__all__ = [
    "DOMAINS",
    "SPLITS",
    "UNKNOWN",
    "DataError",
    "DomainPairDataModule",
    "Roles",
    "Selection",
    "TensorDomain",
    "relabel",
    "select",
]

COMPARED = 500
"""The most samples of a domain from which its proximity to the target is computed."""


class DomainPairDataModule(L.LightningDataModule):
    """Batches of a source and a target domain, or of one domain with labels.

    A subclass implements `dataset(domain, split)`. A training batch is a dictionary, for example
    `{"source": (x, y), "target": x}`: a domain has labels only if the method lists it in `supervised`. Validation, test
    and prediction read one domain at a time.

    The source and the target can be several domains each, with the same classes and shapes. Then `source` and `target`
    name all of them, `art+photo` for example. A method sees one source and one target. Validation and test have a third
    part in a batch, the place of each sample's domain in `named`.

    Args:
        source: Name of the domain with labels, or a list of names.
        target: Name of the domain to transfer to, or a list of names. If one of the two is None, the other is the only
            one: `source` and `target` both name it, and it is validated and tested once, as target.
        batch_size: Samples per batch and domain, on each process.
        target_labels: How many training labels of the target are read, for example 10, or `3/class`; the other samples
            stay as unlabelled ones. They are drawn with the seed of the run, evenly over the classes as far as each has
            enough. None reads all.
        descriptions: File with a description of each class, for zero-shot learning (see `read_descriptions`).
        class_sets: Whether the domains may have different classes. `closed` refuses that. With `partial` the source may
            have classes that the target lacks. With `open` the target may have classes, too, that the source lacks:
            all of them are one class, `unknown`, the last one. It is there even if the target names no class. Several
            domains of one role may then differ, too: their classes are joined.
        source_weights: What each of several source domains has of a training batch. `size`: all samples are read
            equally often. `equal`: as many samples of each domain. `proximity`: the more, the nearer a domain is to the
            target, by their samples without labels (see `several.proximity`). Every domain has one sample at least.
            Several target domains are always read by size.

    Attributes:
        domains: The roles that are validated and tested, `source` or `target`.
        left_out: Number of damaged samples that are left out, by the name of the domain.

    Raises:
        ConfigError: If both are None, a list is empty or names a domain twice, the batch size is less than 1, there are
            not so many labels, or `source_weights` are given for one domain.
    """

    num_workers = 0
    """Processes that load samples; 0 for data held in memory."""
    regression = False
    """Whether the labels are numbers, and no classes."""
    masks = False
    """Whether the label of an image is a mask, the class of each pixel."""
    disjoint_classes = False
    """Whether each class is in one split alone, as identities are."""
    words = False
    """Whether samples are sentences, int64; a network for them has `reads_words`."""
    predicted: tuple[str, ...] = SPLITS
    """Target splits that `predict` classifies; together they contain each sample once."""

    def __init__(
        self,
        source: str | Sequence[str] | None,
        target: str | Sequence[str] | None,
        batch_size: int = 64,
        target_labels: int | str | None = None,
        descriptions: str | None = None,
        class_sets: ClassSets = "closed",
        source_weights: Weights = "size",
    ) -> None:
        super().__init__()
        check_range("data.batch_size", batch_size, 1)
        for role, given in zip(DOMAINS, (source, target), strict=True):
            check_names(role, given)
        if source is None and target is None:
            raise DataError("data: no domain is given; set --data.source and --data.target, or one of them")
        self.source, self.target = joined_name(source or target or ""), joined_name(target or source or "")
        self._joined = {joined_name(given): members(given) for given in (source, target) if given is not None}
        self.batch_size, self.source_weights = batch_size, source_weights
        if source_weights != "size" and len(members(source)) < 2:
            raise DataError(
                f"data.source_weights: {source_weights} is for several source domains, and there is one, "
                f"{self.source!r}; leave it out"
            )
        if target_labels is not None and members(source) == members(target):
            raise DataError("data.target_labels: source and target have the same name, so their labels are the same")
        self.target_labels, self.descriptions, self.class_sets = target_labels, descriptions, class_sets
        self.domains = DOMAINS if source is not None and target is not None else ("target",)
        self.left_out: dict[str, int] = {}
        self._datasets: dict[tuple[str, str], Any] = {}
        self._fingerprints: dict[tuple[str, str], str] = {}
        self._relabelled: dict[tuple[str, str], Any] = {}
        self._checked: Roles | None = None
        self._resumed_at = 0

    def dataset(self, domain: str, split: str) -> Dataset[Any]:
        """One split of one domain. Subclasses implement this method.

        Args:
            domain: Name of the domain: the value of the argument `source` or `target`.
            split: `train`, `val` or `test`.

        Returns:
            A map-style dataset of (x, y), for example a `TensorDomain`, with the attributes `classes` (class names in
            the order of the labels, empty if no label is known), `names` (one per sample), `y` (the labels of all
            samples, shape (n,), int64, `UNKNOWN` (-1) where the class is unknown) and the method `fingerprint()` (a
            digest of its content). With an attribute `reads` (`lightning_da.inputs`) and a method `unscaled`, as those
            of `TensorDomain`, a model outside of this project reads files; otherwise it reads what the network reads.
        """
        raise NotImplementedError

    @property
    def named(self) -> dict[str, tuple[str, ...]]:
        """The names of the domains of `source` and of `target`."""
        return {role: self._members(getattr(self, role)) for role in DOMAINS}

    @property
    def reads(self) -> Input:
        """How a model outside of this project reads a sample."""
        return getattr(self._get(self.target, "test"), "reads", None) or Numbers(self.input_shape)

    def probe(self, number: int) -> tuple[Tensor, Tensor]:
        """The first samples of the target's test split, as `reads` gives them and as the network reads them.

        Args:
            number: The largest number of samples.

        Returns:
            Two tensors of shape (n, ...).
        """
        dataset = self._get(self.target, "test")
        places = range(min(number, len(dataset)))
        x = torch.stack([torch.as_tensor(dataset[place][0]) for place in places])
        if getattr(dataset, "reads", None) is None:
            return x, x
        return torch.stack([dataset.unscaled(place) for place in places]), x

    def names(self, role: str, split: str) -> list[str]:
        """Names of the samples in a split of the source or the target."""
        return list(self._get(getattr(self, role), split).names)

    def metric_names(self, role: str) -> list[str]:
        """The names of the domains of the source or the target in metrics; none if there is one domain."""
        return metric_names(self.named[role]) if len(self.named[role]) > 1 else []

    def domains_of(self, role: str, split: str) -> list[str]:
        """The domain of each sample in a split of the source or the target."""
        sizes = {domain: len(self._get(domain, split)) for domain in self.named[role]}
        return [domain for domain, size in sizes.items() for _ in range(size)]

    def spelling(self) -> dict[int, str]:
        """The words of sentences by their integers; empty where they are not known."""
        return {}

    def training_samples(self, roles: Iterable[str]) -> Iterator[Tensor]:
        """All training samples of the given domains (`source`, `target`), in chunks of shape (b, ...)."""
        for role in roles:
            dataset = self._get(getattr(self, role), "train")
            for x, _ in in_chunks(dataset, range(len(dataset))):
                yield x

    def training_labels(self, role: str) -> Tensor:
        """Labels of all training samples of a domain, shape (n,), int64, `UNKNOWN` where the label is not read."""
        y = torch.as_tensor(self._get(getattr(self, role), "train").y)
        labels = torch.full_like(y, UNKNOWN)
        rows = self._rows(role)
        labels[rows] = y[rows]
        return labels

    def training_numbers(self, role: str) -> Tensor:
        """Numbers of all training samples of a domain, shape (n,), float32, NaN where the label is not read."""
        labels = self.training_labels(role)
        numbers: Tensor = self._get(getattr(self, role), "train").numbers
        return numbers[labels]

    def trained_on(self, domain: str) -> dict[str, str]:  # noqa: ARG002
        """Samples of a training split that no test may have: text for messages, by identity. None in this class."""
        return {}

    def tested(self) -> dict[str, str]:
        """Samples of the target's test split, as those of `trained_on`. None in this class."""
        return {}

    def classes_of(self, domain: str) -> list[str]:
        """Class names of a domain; empty if no label is known."""
        return list(self._own(domain, "train").classes)

    def classes_in(self, role: str) -> list[str]:
        """Class names of the source or the target: those of its first domain, then those that another adds."""
        return self._classes_of_all(self.named[role])

    def _classes_of_all(self, domains: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(name for domain in domains for name in self.classes_of(domain)))

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the labels (see `joined`).

        If the target names none, all described classes may be in it.
        """
        source, target = (self.classes_in(role) for role in DOMAINS)
        if not target and self.described is not None:
            target = self.described.classes
        return joined(source, target, self.class_sets)

    @property
    def setting(self) -> str:
        """How the class sets differ, `open-set` for example, and the classes; empty if they do not.

        It comes from the names of the classes, and not from the labels of training samples. If the target names no
        classes, it is `class_sets`, unless that is `closed`.
        """
        source, target = (self.classes_in(role) for role in DOMAINS)
        if source and not target and self.class_sets != "closed":
            return f"{self.class_sets}: as data.class_sets says; {self.target!r} names no class"
        if not (source and target and (kind := setting(source, target))):
            return ""
        alone = {self.source: only(source, target), self.target: only(target, source)}
        return f"{kind}: " + "; ".join(f"{name!r} alone has {listed(own)}" for name, own in alone.items() if own)

    @functools.cached_property
    def described(self) -> Descriptions | None:
        """The descriptions of the classes; None if there are none."""
        return None if self.descriptions is None else read_descriptions(Path(self.descriptions))

    @property
    def num_attributes(self) -> int:
        """Number of attributes in the description of a class; 0 if there are none."""
        return 0 if self.described is None else len(self.described.attributes)

    @property
    def num_classes(self) -> int:
        """Number of classes; 1 for a regression.

        Raises:
            DataError: If there is only one.
        """
        if self.regression:
            return 1
        if len(self.classes) == 1:
            raise DataError(f"there is only one class, {self.classes[0]!r}; a classifier needs two or more")
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the target.

        Raises:
            DataError: If the target has no sample.
        """
        return self.shape_of(self.target)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the source: that of the target, where a subclass does not say otherwise."""
        return self.input_shape

    def shape_of(self, domain: str) -> tuple[int, ...]:
        """Shape of one sample of a domain.

        Raises:
            DataError: If the domain has no sample.
        """
        for split in SPLITS:
            if len(dataset := self._get(domain, split)):
                return tuple(dataset[0][0].shape)
        raise empty(domain, "train")

    def fingerprint(self) -> str:
        """A digest of all samples, labels and descriptions in both domains: equal digests mean equal data."""
        digest = hashlib.sha256()
        for domain in (self.source, self.target):
            for split in SPLITS:
                digest.update(self._fingerprint(domain, split).encode())
        if self.described is not None:
            digest.update(self.described.of(self.classes).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _fingerprint(self, domain: str, split: str) -> str:
        if (domain, split) not in self._fingerprints:
            self._fingerprints[domain, split] = self._get(domain, split).fingerprint()
        return self._fingerprints[domain, split]

    def sets(self, supervised: Iterable[str], unlabelled: Iterable[str]) -> list[tuple[str, str, str]]:
        """The data sets of a fit and its test: name, digest and context, for example `target/unlabelled`.

        With the protocol `all`, one data set has several contexts, `target/unlabelled, target/test`.

        Args:
            supervised: The domains that are trained on with labels.
            unlabelled: The domains that are trained on without labels.
        """
        parts = [(role, "train", "train") for role in supervised]
        parts += [(role, "train", "unlabelled") for role in unlabelled]
        parts += [(role, "test", "test") for role in self.domains]
        contexts: dict[tuple[str, str], list[str]] = {}
        for role, split, use in parts:
            for domain in self.named[role]:
                contexts.setdefault((domain, self._fingerprint(domain, split)[:16]), []).append(f"{role}/{use}")
        return [(*key, ", ".join(uses)) for key, uses in contexts.items()]

    def state_dict(self) -> dict[str, Any]:
        labels = self._rows("target").tolist() if self.target_labels else []
        return {"classes": self.classes, "labels": labels, "batches": self._batches_read()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        resumed = self.trainer is not None and self.trainer.state.fn == "fit"
        if resumed and state_dict.get("labels", []) != self.state_dict()["labels"]:
            raise DataError(
                "data.target_labels: the checkpoint was trained on other labels of the target; resume with the same "
                "target_labels and seed_everything"
            )
        if state_dict["classes"] != self.classes:
            raise DataError(
                f"the checkpoint was fitted with classes {state_dict['classes']}, but the data have {self.classes}"
            )
        self._resumed_at = state_dict.get("batches", 0) if resumed else 0

    # ---------------------------------------------------------------- checks

    def check_has_classes(self, command: str) -> None:
        """Refuses numbers and masks as labels, for a command that counts right answers.

        Raises:
            DataError: If the labels are numbers or masks.
        """
        if kind := self._no_classes:
            raise DataError(
                f"{command} counts right classes, and the labels are {kind}; take data with a class for each sample"
            )

    @property
    def _no_classes(self) -> str:
        """What the labels are, if these are no classes of samples; otherwise empty."""
        return "masks" if self.masks else "numbers" if self.regression else ""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._resumed_at = 0
            if self._checked != self._roles():
                self.check(self._roles())
            return
        for domain in self._every(self.domains):
            for split in {"validate": ("val",), "test": ("test",)}.get(stage, ()):
                self._check_size(domain, split)
        self._check_classes(self._roles())

    def check(self, roles: Roles = Roles()) -> None:  # noqa: B008  # a NamedTuple does not change
        """Checks that training can read the domains.

        Args:
            roles: The domains that training reads.

        Raises:
            DataError: If two domains are the same data, a method that reads source and target gets one, the network
                reads sentences and the samples are none or the other way round, the same for masks as labels, an option
                is for classes and the labels are none, a split is empty or smaller than a batch, the classes, shapes or
                value ranges differ, a label is out of range, a supervised domain has no labels, its masks have one
                class, or a value is not finite. The message names the domain, one of several too.
        """
        read = roles.supervised + roles.unlabelled
        if len(self.domains) < 2 <= len(read):
            alone = "unet" if self.masks else "fine_tune"
            raise DataError(
                f"the method reads a source and a target, but there is one domain, {self.target!r}; set --data.source "
                f"and --data.target, or train on the one domain with --config method/{alone}.yaml"
            )
        self._check_kinds(roles)
        if len(self._every(self.domains)) > 1:
            self._check_classes(roles)
        for role in self.domains:
            for domain in self.named[role]:
                for split in SPLITS:
                    self._check_size(domain, split)
            if role in read or len(self.domains) < 2:
                self._check_batch(role, roles.processes)
        if read and self.batch_size < roles.fewest_samples:
            raise DataError(
                f"data.batch_size: {self.batch_size} is fewer than the {roles.fewest_samples} samples that batch norm "
                "or the domain loss needs; give more"
            )
        for domain in self._every(self.domains) if not (self.masks or self.disjoint_classes) else ():
            own = self.classes_of(domain)
            expected = [name for name in own if name in self.classes]
            warn_of_missing_classes(domain, self._splits_of(domain), self.classes, expected)
        self.check_inputs(roles)
        if roles.modalities_differ and self.source_weights == "proximity":
            raise DataError("data.source_weights: samples of two modalities have no proximity; set size or equal")
        if "source" in read:
            self.counts_in_batch("source", roles.processes * self.batch_size)
        if ("target" in roles.supervised or len(self.domains) < 2) and getattr(self, "protocol", "split") == "all":
            rank_zero_warn(
                "protocol `all`: the labels of the target are trained on and tested, so its accuracy is that of "
                "training samples; use --data.protocol split"
            )
        self._check_labelled(roles)
        self._checked = roles

    def _check_kinds(self, roles: Roles) -> None:
        """Refuses samples or labels of a kind that the method does not read, and options for another kind of labels."""
        if (kind := self._no_classes) and self.class_sets != "closed":
            raise DataError(
                f"data.class_sets: {self.class_sets} is for classes, and the labels are {kind}; leave it out"
            )
        if kind and "/" in str(self.target_labels):
            raise DataError(
                f"data.target_labels: {self.target_labels} counts labels of each class, and the labels are {kind}; "
                "give one number, for example 10"
            )
        if roles.reads_words not in (None, self.words):
            what, instead = (
                ("sentences", "LSTM") if self.words else ("no sentences", "FeedForward, or LeNet for images")
            )
            raise DataError(f"the samples are {what}; set --model.backbone lightning_da.networks.{instead}")
        if roles.segments not in (None, self.masks):
            raise DataError(
                "the labels are masks, and the method needs a class for each sample; take --config "
                "method/segmentation.yaml or method/unet.yaml"
                if self.masks
                else "the method answers with masks, and the labels are none; take data with masks, or another method"
            )

    def _check_labelled(self, roles: Roles) -> None:
        """Refuses fewer labels than processes, and says which labels are missing, and which of the target are read."""
        for role in roles.supervised:
            rows = self._few(role)
            if (
                rows is not None
                and len(rows) // roles.processes < roles.fewest_samples
                and not (roles.reads_unlabelled and role == "target")
            ):
                raise DataError(
                    f"domain {getattr(self, role)!r}: {len(rows)} training samples with a label are too few for batch "
                    f"norm on {roles.processes} process(es), which needs {roles.fewest_samples} on each"
                )
            if rows is not None and len(rows) < roles.processes:
                raise DataError(
                    f"domain {getattr(self, role)!r}: {len(rows)} training samples with a label are fewer than the "
                    f"{roles.processes} processes"
                )
            if rows is not None and (role == "source" or self.target_labels is None):
                number = len(self._get(getattr(self, role), "train"))
                rank_zero_info(
                    f"domain {getattr(self, role)!r}: {number - len(rows)} of {number} training samples have no label; "
                    "the task loss leaves them out"
                )
            if rows is not None and not roles.reads_unlabelled:
                size = min(self.batch_size, len(rows) // roles.processes)
                self.counts_in_batch(role, roles.processes * size, rows)
        if self.target_labels is None:
            return
        y, rows = torch.as_tensor(self._get(self.target, "train").y), self._rows("target")
        counts = torch.bincount(y[rows], minlength=self.num_classes).tolist()
        each = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        kept = "mask, " if self.masks else "value, " if self.regression else f"label, {each} of each class, "
        rank_zero_info(
            f"target_labels: {sum(counts)} of the {len(y)} training samples of {self.target!r} keep their {kept}"
            f"drawn with seed {seed_of_run()}"
        )
        if roles.reads_unlabelled and "target" not in roles.supervised:
            rank_zero_warn("target_labels: the method reads no label of the target; set --model.train_on both")

    def check_inputs(self, roles: Roles) -> None:
        """Checks that one network can read all domains, or two networks those of two modalities, whatever the classes.

        Args:
            roles: The domains that training reads.

        Raises:
            DataError: If two domains are the same data, a sample or label is wrong, or shapes or value ranges differ.
        """
        alone = len(self.domains) < 2
        if not alone:
            self._check_pair()
        looks = {
            role: {
                domain: look_at(
                    domain,
                    self._splits_of(domain),
                    self.num_classes,
                    role in roles.supervised or alone,
                    self.regression,
                    self.masks,
                )
                for domain in self.named[role]
            }
            for role in self.domains
        }
        together = {domain: look for own in looks.values() for domain, look in own.items()}
        for group in looks.values() if roles.modalities_differ else [together]:
            check_shapes(group)
        if roles.modalities_differ:
            if (found := next(iter(looks["source"].values())).shape) != self.source_shape:
                raise DataError(
                    f"domain {self.source!r}: samples have the shape {found}, and {type(self).__name__}."
                    f"source_shape is {self.source_shape}; two modalities need a data module that says both, such as "
                    "FeatureTables"
                )
            return
        if self.words:
            return
        for own in looks.values():
            self._check_ranges(own, "")
        if not roles.units_differ:
            self._check_ranges(together, ", or each by itself with --model.standardize per_domain")

    def _check_pair(self) -> None:
        """Refuses identical data in two domains, also under two names."""
        every = [(role, domain) for role in DOMAINS for domain in self.named[role]]
        for (role, domain), (other_role, other) in itertools.combinations(every, 2):
            if domain == other or same_samples(self._get(domain, "train"), self._get(other, "train")):
                raise DataError(
                    f"{role} {domain!r} and {other_role} {other!r} are the same data, so there is nothing to "
                    "transfer; choose two different domains"
                )

    def _check_ranges(self, looks: Mapping[str, Look], remedy: str) -> None:
        """Refuses domains of which one has values that are many times as large; see `checks.check_ranges`."""
        check_ranges(looks, remedy)

    def _check_size(self, domain: str, split: str) -> None:
        """Refuses an empty split."""
        if not len(self._get(domain, split)):
            raise empty(domain, split)

    def _check_batch(self, role: str, processes: int) -> None:
        """Refuses training samples that do not fill one batch per process."""
        domain = getattr(self, role)
        size = len(self._get(domain, "train"))
        if size < processes:
            raise DataError(f"domain {domain!r}: {size} training samples are fewer than the {processes} processes")
        if size < processes * self.batch_size:
            raise DataError(
                f"domain {domain!r}: {size} training samples are fewer than a batch of {self.batch_size} on each of "
                f"{processes} process(es); set --data.batch_size to at most {size // processes}"
            )

    def _check_classes(self, roles: Roles) -> None:
        source, target = (self.classes_in(role) for role in DOMAINS)
        allowed = "" if self.class_sets == "closed" else f"data.class_sets: {self.class_sets}"
        if allowed and roles.tasks_differ:
            raise DataError(f"{allowed} is for one task; the method has a task for each domain, so leave it at closed")
        if self.class_sets == "open":
            for domain in self.named["source"]:
                if UNKNOWN_CLASS in self.classes_of(domain):
                    raise DataError(f"{allowed}: domain {domain!r} has a class {UNKNOWN_CLASS!r}; give it another name")
        groups = [self.named[role] for role in DOMAINS] if roles.tasks_differ else [self._every(DOMAINS)]
        for domains in groups if not allowed else ():
            self._check_same_classes([domain for domain in domains if self.classes_of(domain)])
        if not (source and target) or roles.tasks_differ or not allowed:
            return
        for domain in self.named["target"]:
            own = self.classes_of(domain)
            if own and not set(own) & set(source):
                raise DataError(f"{allowed}: no class of {self.source!r}, {listed(source)}, is in {domain!r}")
            if self.class_sets == "partial" and only(own, source):
                raise differing((self.source, source), (domain, own), source, target)
        if self.setting:
            rank_zero_info(f"class_sets: {self.setting}")

    def _check_same_classes(self, domains: Sequence[str]) -> None:
        """Refuses domains with other classes than the first, or in another order."""
        for domain in domains[1:]:
            first, own = self.classes_of(domains[0]), self.classes_of(domain)
            if own != first:
                raise differing((domains[0], first), (domain, own), *map(self.classes_in, DOMAINS))

    # ---------------------------------------------------------------- loaders

    def _every(self, roles: Iterable[str]) -> list[str]:
        """The domains of some roles, each once."""
        return list(dict.fromkeys(domain for role in roles for domain in self.named[role]))

    def _splits_of(self, domain: str) -> dict[str, Any]:
        """The splits of a domain, with the labels of the pair."""
        return {split: self._get(domain, split) for split in SPLITS}

    def _members(self, domain: str) -> tuple[str, ...]:
        """The domains that a name stands for: those of a role, or the domain itself."""
        return self._joined.get(domain, (domain,))

    def _own(self, domain: str, split: str) -> Any:
        """A split with the labels of its domain."""
        if (domain, split) not in self._datasets:
            parts = self._members(domain)
            if len(parts) > 1:
                classes = self._classes_of_all(parts)
                owns = {part: self._own(part, split) for part in parts}
                found: Any = join({part: relabel(own, classes) if own.classes else own for part, own in owns.items()})
            else:
                found = self.dataset(parts[0], split)
            self._datasets[domain, split] = found
        return self._datasets[domain, split]

    def _get(self, domain: str, split: str) -> Any:
        """A split with the labels of the pair, see `classes`."""
        parts = self._members(domain)
        own = self._own(domain, split) if len(parts) == 1 else None
        if own is not None and (not own.classes or own.classes == self.classes):
            return own
        if (domain, split) not in self._relabelled:
            found = (
                relabel(own, self.classes)
                if own is not None
                else join({part: self._get(part, split) for part in parts})
            )
            self._relabelled[domain, split] = found
        return self._relabelled[domain, split]

    def _roles(self) -> Roles:
        """The domains that the current module reads."""
        if self.trainer is None:
            return Roles()
        return Roles.of(self.trainer.lightning_module, self.trainer.world_size)

    def _batches_read(self) -> int:
        # Lightning makes the iterators, which read ahead, before it restores its own count.
        return max(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready, self._resumed_at) if self.trainer else 0

    def _evaluated(self, domain: str, split: str) -> Any:
        """A split as it is validated, tested and predicted: `predict` reads training samples too."""
        return self._get(domain, split)

    def unlabelled_dataloader(self, role: str) -> DataLoader[Any]:
        """This process's training samples of a domain, without labels: each once and in order, as `predict` reads them.

        Args:
            role: `source` or `target`.
        """
        return self._loader(role, "train", labels=False)

    def _loader(self, role: str, split: str, labels: bool = True) -> DataLoader[Any]:
        parts = {domain: self._evaluated(domain, split) for domain in self.named[role]}
        dataset = next(iter(parts.values()))
        if len(parts) > 1:
            whole = self._get(getattr(self, role), split)
            dataset = WithDomain(whole if isinstance(whole, JoinedTensors) else join(parts))
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        batch_size = even_batch(len(dataset), world, self.batch_size)
        return self._load(dataset, Share(dataset, world, rank), batch_size, labels)

    def _train_loader(self, role: str, labels: bool, rows: Tensor | None = None) -> DataLoader[Any]:
        """Training batches of a domain; of the samples `rows` alone, if given, in epochs of the same length."""
        dataset = self._get(getattr(self, role), "train")
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        batch_size, length, y = self.batch_size, None, torch.as_tensor(dataset.y)
        if rows is not None:
            length = max(len(dataset) // world // self.batch_size, 1)
            dataset, batch_size, y = Subset(dataset, rows.tolist()), min(batch_size, len(rows) // world), y[rows]
        read = y if labels else torch.full_like(y, UNKNOWN)
        arguments = (dataset, world, rank, seed_of_run(), batch_size, self._batches_read, length)
        sampler = Shuffle(*arguments, functools.partial(self.reading_order, read))
        if counts := self.counts_in_batch(role, world * batch_size, rows):
            domain = self._domain_of(role, rows)
            if self.trainer:
                counts = self.trainer.strategy.broadcast(counts)
            mixture = Mixture(domain, counts, seed_of_run(), lambda own, seed: self.reading_order(read[own], seed))
            sampler = Mixed(mixture, *arguments)
        return self._load(Drawn(dataset, seed_of_run(), DOMAINS.index(role)), sampler, batch_size, labels)

    def reading_order(self, y: Tensor, seed: int) -> Tensor:
        """The order in which one pass of training reads the samples of a domain: a random permutation in this class.

        Under several processes, consecutive samples are dealt to them in turn: a batch of all processes together is a
        consecutive part of the order.

        Args:
            y: Labels, shape (n,), int64, `UNKNOWN` where training does not read them.
            seed: Of the pass; equal seeds give equal orders.

        Returns:
            Indices, shape (n,), int64.
        """
        return permutation(len(y), seed)

    def _domain_of(self, role: str, rows: Tensor | None) -> Tensor:
        """The place of each training sample's domain, shape (n,); of the samples `rows` alone, if given."""
        domain: Tensor = self._get(getattr(self, role), "train").domain
        return domain if rows is None else domain[rows]

    def counts_in_batch(self, role: str, number: int, rows: Tensor | None = None) -> list[int]:
        """How many samples of a training batch are of each domain of a role; none if they are read by size.

        Args:
            role: `source` or `target`.
            number: Samples in a batch, on all processes together.
            rows: The training samples that are read, if these are not all.

        Raises:
            DataError: If a batch has fewer samples than there are domains, or more of a domain than the domain has.
        """
        domains = self.named[role]
        if len(domains) < 2 or role == "target" or self.source_weights == "size":
            return []
        if number < len(domains):
            raise DataError(
                f"data.batch_size: {number} samples are fewer than the {len(domains)} domains of the {role}"
            )
        found = shares(list(self.weights.values()), number)
        sizes = torch.bincount(self._domain_of(role, rows), minlength=len(domains)).tolist()
        for domain, wanted, size in zip(domains, found, sizes, strict=True):
            if size < wanted:
                raise DataError(
                    f"domain {domain!r}: {size} training samples are fewer than its {wanted} in a batch of {number}; "
                    "set a smaller --data.batch_size, or --data.source_weights size"
                )
        return found

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each source domain in a training batch; together they are 1."""
        domains = self.named["source"]
        sizes = {domain: len(self._get(domain, "train")) for domain in domains}
        found: Mapping[str, float] = {"size": sizes, "equal": dict.fromkeys(domains, 1)}.get(self.source_weights, {})
        if self.source_weights == "proximity":
            for domain in self._every(DOMAINS):
                if (number := len(self._get(domain, "train"))) < FOLDS:
                    raise DataError(
                        f"domain {domain!r}: {number} training samples are too few for a proximity to the target; "
                        f"give {FOLDS}, or another --data.source_weights"
                    )
            target = torch.cat([self._compared(domain) for domain in self.named["target"]])
            found = {domain: proximity(self._compared(domain), target) for domain in domains}
            each = ", ".join(f"{own:.3f} of {domain!r}" for domain, own in found.items())
            rank_zero_info(f"source_weights: proximity to {self.target!r}, from 0 to 1: {each}")
        total = sum(found.values())
        return {domain: own / total if total else 1 / len(found) for domain, own in found.items()}

    def _compared(self, domain: str) -> Tensor:
        """Some training samples of a domain as vectors, without labels and without augmentation."""
        dataset = self._evaluated(domain, "train")
        rows = permutation(len(dataset), 0)[:COMPARED].tolist()
        with isolate_rng():
            fetch = getattr(dataset, "__getitems__", lambda wanted: [dataset[i] for i in wanted])
            return vectors(collate(fetch(rows), labels=False))

    def _load(self, dataset: Any, sampler: DistributedSampler[Any], batch_size: int, labels: bool) -> DataLoader[Any]:
        return StatelessLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            generator=torch.Generator().manual_seed(seed_of_run()),  # the global random state does not change
            drop_last=isinstance(sampler, Shuffle),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=functools.partial(collate, labels=labels),
            pin_memory=torch.cuda.is_available(),
        )

    def sample_dataloader(self, role: str, split: str, number: int, seed: int = 0) -> DataLoader[Any]:
        """This process's share of a fixed random subset of a split, without repetition.

        Process r of N reads the samples r, r + N, ... of the subset. The global random state does not change.

        Args:
            role: `source` or `target`.
            split: `train`, `val` or `test`.
            number: Largest size of the subset, over all processes.
            seed: Equal seeds give equal subsets.
        """
        dataset = self._get(getattr(self, role), split)
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        return DataLoader(
            Subset(dataset, order[:number][rank::world].tolist()),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=functools.partial(collate, labels=True),
            generator=torch.Generator().manual_seed(seed),
        )

    def train_dataloader(self) -> CombinedLoader:
        """Batches of the domains that the module reads.

        If some samples of a supervised domain have no label, a method that reads the samples without a label gets the
        labelled samples of the target in a batch of their own, `labelled`, and all samples in `target`; other methods
        get the labelled samples alone.
        """
        roles = self._roles()
        loaders: dict[str, DataLoader[Any]] = {}
        for role in DOMAINS:
            rows = self._few(role) if role in roles.supervised else None
            if rows is not None and roles.reads_unlabelled and role == "target":
                loaders |= {role: self._train_loader(role, False), "labelled": self._train_loader(role, True, rows)}
            elif rows is not None and not roles.reads_unlabelled:
                loaders[role] = self._train_loader(role, True, rows)
            elif role in roles.supervised + roles.unlabelled:
                loaders[role] = self._train_loader(role, role in roles.supervised)
        return CombinedLoader(loaders, "max_size_cycle")

    def _rows(self, role: str) -> Tensor:
        """The training samples of a domain whose labels are read."""
        y = torch.as_tensor(self._get(getattr(self, role), "train").y)
        known = (y != UNKNOWN).nonzero()[:, 0]
        if self.target_labels is None or getattr(self, role) != self.target:
            return known
        return known[draw_labelled(y[known], self.target_labels, seed_of_run(), "data.target_labels")]

    def _few(self, role: str) -> Tensor | None:
        """The training samples of a domain whose labels are read; None if these are all."""
        rows = self._rows(role)
        return rows if len(rows) < len(self._get(getattr(self, role), "train")) else None

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self._loader(role, "val") for role in self.domains]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        return [self._loader(role, "test") for role in self.domains]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        if not any(len(self._get(self.target, split)) for split in self.predicted):
            raise DataError(f"domain {self.target!r}: there is nothing to predict; its splits are empty")
        return [self._loader("target", split) for split in self.predicted]
