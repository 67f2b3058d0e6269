"""How a model reads its input: numbers, images, sounds and texts, from what a file holds to a sample.

A model that is logged takes this file with it, so that it reads its input without this project.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_da.errors import ConfigError, one_line
from lightning_da.text.words import encode, split_words


@dataclass(frozen=True)
class Numbers:
    """Samples as the network reads them.

    Attributes:
        shape: Shape of a sample.
    """

    shape: tuple[int, ...]

    @property
    def blank(self) -> Tensor:
        """A sample of zeros, before it is scaled."""
        return torch.zeros(self.shape)

    def read(self, given: Any) -> Tensor:
        """A sample of an array or nested lists.

        Raises:
            ConfigError: If its shape is another one, or a value is no finite number.
        """
        x = np.asarray(given, dtype=np.float32)
        if x.shape != tuple(self.shape):
            raise ConfigError(f"a sample has shape {x.shape}, but the model reads {tuple(self.shape)}")
        if not np.isfinite(x).all():
            raise ConfigError("a sample holds NaN or infinite values")
        return torch.from_numpy(x)

    def scaled(self, x: Tensor) -> Tensor:
        """Samples (n, ...) as they were read to the input of the network."""
        return x


@dataclass(frozen=True)
class Images:
    """Images of any size and kind that `decode` reads.

    Attributes:
        size: Height and width of a sample.
        channels: 3, or 1 for grey.
        resize: Length of the shorter side after scaling, before the centre is cropped; None scales to `size`.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel.
    """

    size: tuple[int, int]
    channels: int = 3
    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def blank(self) -> Tensor:
        """A black sample, before it is scaled."""
        return torch.zeros((self.channels, *self.size), dtype=torch.uint8)

    def example(self) -> bytes:
        """The content of an image file: a black PNG."""
        content = BytesIO()
        Image.new("RGB", self.size[::-1]).save(content, "PNG")
        return content.getvalue()

    def read(self, given: bytes | Image.Image) -> Tensor:
        """A sample (channels, height, width) of uint8, of an image or the content of its file.

        Raises:
            ConfigError: If it is not the content of a readable image file.
        """
        from torchvision.transforms import v2  # noqa: PLC0415  # slow to import, and only images need it

        try:
            image = given if isinstance(given, Image.Image) else decode(BytesIO(given))
        except Exception as error:  # Pillow's decoders raise exceptions of many kinds
            cause = one_line(error).partition(" <")[0]  # without Pillow's name of the bytes
            raise ConfigError(f"not a readable image ({cause})") from error
        pixels: Tensor = v2.functional.pil_to_tensor(image if self.channels == 3 else image.convert("L"))
        if self.resize is not None:
            pixels = v2.functional.center_crop(v2.functional.resize(pixels, [self.resize]), list(self.size))
        elif pixels.shape[1:] != tuple(self.size):
            pixels = v2.functional.resize(pixels, list(self.size))
        return pixels

    def scaled(self, x: Tensor) -> Tensor:
        """Samples (n, channels, height, width) as they were read to the input of the network."""
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (x.float() / 255 - mean) / std


@dataclass(frozen=True)
class Sounds:
    """Sounds of any length and rate that `speech.audio.read_sound` reads, as feature vectors.

    Attributes:
        features: One of `speech.feature_sets.FEATURE_SETS`.
        rate: Samples per second, to which the sound is brought.
    """

    features: str
    rate: int

    @property
    def blank(self) -> Tensor:
        """A vector of zeros."""
        from lightning_da.speech.feature_sets import width  # noqa: PLC0415

        return torch.zeros(width(self.features))

    def example(self) -> bytes:
        """The content of a sound file: half a second of a tone of 200 Hz."""
        import soundfile  # noqa: PLC0415  # slow to import, and only sounds need it

        content, times = BytesIO(), np.arange(self.rate // 2) / self.rate
        soundfile.write(content, 0.1 * np.sin(2 * np.pi * 200 * times), self.rate, format="WAV")
        return content.getvalue()

    def read(self, given: bytes) -> Tensor:
        """The feature vector of the content of a sound file.

        Raises:
            ConfigError: If it is not the content of a readable sound file.
        """
        from lightning_da.speech.audio import read_sound  # noqa: PLC0415
        from lightning_da.speech.feature_sets import describe  # noqa: PLC0415

        with NamedTemporaryFile(suffix=".sound") as file:
            file.write(given)
            file.flush()
            try:
                sound = read_sound(Path(file.name), self.rate)
            except ConfigError as error:
                raise ConfigError(str(error).replace(file.name, "a sound")) from error
        return torch.from_numpy(describe(sound, self.features, self.rate))

    def scaled(self, x: Tensor) -> Tensor:
        """Feature vectors (n, d) to the input of the network, which scales them itself."""
        return x


@dataclass(frozen=True)
class Texts:
    """Sentences, as the integers of their words (see `lightning_da.text.words`).

    Attributes:
        length: Largest number of words; the later ones are not read.
    """

    length: int

    @property
    def blank(self) -> Tensor:
        """A sample without words."""
        return torch.zeros(self.length, dtype=torch.int64)

    def example(self) -> str:
        """A sentence."""
        return "A good book."

    def read(self, given: str) -> Tensor:
        """A sample (length,) of int64, of a sentence.

        Raises:
            ConfigError: If there is no word.
        """
        if not isinstance(given, str) or not split_words(given):
            raise ConfigError("there is no text")
        return torch.from_numpy(encode([given], self.length)[0][0])

    def scaled(self, x: Tensor) -> Tensor:
        """Samples (n, length) as they were read, which are the input of the network."""
        return x


Input = Numbers | Images | Sounds | Texts
KINDS: Sequence[type[Input]] = (Numbers, Images, Sounds, Texts)


def described(reads: Input) -> dict[str, Any]:
    """An input as plain values, for JSON."""
    return {"kind": type(reads).__name__, **asdict(reads)}


def of_description(values: dict[str, Any]) -> Input:
    """The input of plain values from `described`."""
    kind = next(kind for kind in KINDS if kind.__name__ == values["kind"])
    return kind(**{key: value for key, value in values.items() if key != "kind"})


def decode(file: Path | BinaryIO) -> Image.Image:
    """Decodes an image as RGB.

    Grey images get three equal channels. Transparency is dropped and CMYK converted by Pillow, as in torchvision and
    timm. Pixels of 16 bits are reduced to their upper 8 bits. The first frame of an animation is read. The orientation
    in the EXIF data is not applied, as in torchvision and timm.

    Raises:
        Exception: Of many kinds, if the file is no image, its pixels are floating-point numbers, or integers outside 16
            bits.
    """
    with Image.open(file) as image:
        if image.mode == "F":
            raise ValueError("pixels are floating-point numbers of unknown range")
        if image.mode.startswith("I"):
            grey = np.asarray(image)
            if grey.min() < 0 or grey.max() >= 2**16:
                raise ValueError("pixels are outside the range of 16 bits")
            return Image.fromarray((grey // 2**8).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
