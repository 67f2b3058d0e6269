"""Image files: how pixels are read, which files are refused, and which are read again."""

import io
import multiprocessing
import os
import signal
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch._utils import ExceptionWrapper
from torchvision.datasets.folder import default_loader

from lightning_da.data import image_files
from lightning_da.data.base import DataError
from lightning_da.data.image_files import find_damaged, list_images, read_image
from lightning_da.errors import RunError, loading_errors, one_line
from lightning_da.main import main
from lightning_da.methods import DANN
from tests.test_bad_input import IMAGES, latest, write_images
from tests.test_image_folders import draw, folders, names, root

__all__ = ["root"]

Pixels = NDArray[np.uint8]


def noise(channels: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(256, size=(16, 20, channels), dtype=np.uint8)


def pixels(path: Path) -> Pixels:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def save(path: Path, values: Any, mode: str, **options: Any) -> Path:
    Image.frombytes(mode, (20, 16), values.tobytes()).save(path, **options)
    return path


# ---------------------------------------------------------------- pixels


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = noise(1)
    for path in (save(tmp_path / "l.png", grey, "L"), save(tmp_path / "l.pgm", grey, "L")):
        assert np.array_equal(pixels(path), grey.repeat(3, axis=2))
    path = save(tmp_path / "la.png", np.concatenate([grey, noise(1, 1)], axis=2), "LA")
    assert np.array_equal(pixels(path), grey.repeat(3, axis=2))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    colours = noise(3)
    path = save(tmp_path / "rgba.png", np.concatenate([colours, noise(1, 1)], axis=2), "RGBA")
    assert np.array_equal(pixels(path), colours)


@pytest.mark.parametrize("transparency", [None, 3])
def test_a_palette_is_looked_up(tmp_path: Path, transparency: int | None) -> None:
    places, palette = noise(1), noise(3, 1)[:16, :16].reshape(256, 3)
    image = Image.frombytes("P", (20, 16), places.tobytes())
    image.putpalette(palette.tobytes())
    if transparency is not None:
        image.info["transparency"] = transparency
    image.save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as saved:
        assert saved.info.get("transparency") == transparency
    assert np.array_equal(pixels(tmp_path / "p.png"), palette[places[:, :, 0]])


def test_cmyk_is_converted(tmp_path: Path) -> None:
    inks = noise(4)
    path = save(tmp_path / "cmyk.tif", inks, "CMYK")
    left = 255.0 - inks
    assert np.abs(pixels(path) - left[:, :, :3] * left[:, :, 3:] / 255).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1", "CMYK"])
def test_pixels_are_those_of_torchvision(tmp_path: Path, mode: str) -> None:
    path = draw(tmp_path / ("image.jpg" if mode == "CMYK" else "image.png"), mode=mode)
    with Image.open(path) as image:
        assert image.mode == mode
    assert np.array_equal(pixels(path), np.asarray(default_loader(str(path))))


RAMP = np.arange(0, 2**16, 2**8, dtype=np.uint16).reshape(16, 16) + 255


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "big endian"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    """Pillow's own conversion to RGB clips them: nearly all pixels become white."""
    path = tmp_path / f"ramp.{suffix if suffix != 'big endian' else 'tif'}"
    if suffix == "pgm":
        path.write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    elif suffix == "big endian":
        Image.frombytes("I;16B", (16, 16), RAMP.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(RAMP).save(path)
    assert np.array_equal(pixels(path), (RAMP // 256)[:, :, None].repeat(3, axis=2))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), b"IDAT": zlib.compress(rows)}
    chunks = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in parts.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + b"\0\0\0\0IEND\xaeB`\x82"


def test_sixteen_bits_of_three_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(2**16, size=(4, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "x.png").write_bytes(png(5, 4, 16, 2, rows))
    assert np.array_equal(pixels(tmp_path / "x.png"), values // 256)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((16, 20), 0.5, np.float32), "floating-point numbers"),
        (np.full((16, 20), 70_000, np.int32), "outside the range of 16 bits"),
        (np.full((16, 20), -1, np.int32), "outside the range of 16 bits"),
    ],
)
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, values: Any, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif: not a readable image \(pixels are {message}"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif"])
def test_the_first_frame_of_several(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (20, 16), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    assert np.array_equal(pixels(tmp_path / f"x.{suffix}"), np.asarray(frames[0]))


def test_the_orientation_in_exif_data_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = noise(3)
    path = save(tmp_path / "x.png", colours, "RGB", exif=exif)
    assert np.array_equal(pixels(path), colours)


# ---------------------------------------------------------------- damaged files


def whole(kind: str) -> tuple[bytes, Pixels]:
    smooth = gaussian_filter(np.random.default_rng(0).random((48, 64, 3)), (3, 3, 0))
    image = Image.fromarray((smooth / smooth.max() * 255).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, kind)
    with Image.open(stream) as read:
        return stream.getvalue(), np.asarray(read)


def damaged(folder: Path) -> dict[int, str]:
    return find_damaged(folder, list_images(folder))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "webp", "tiff", "ppm"])
def test_a_file_without_its_end(tmp_path: Path, kind: str) -> None:
    """Wherever it is cut, a file is refused, or nothing is lost in it."""
    content, expected = whole(kind)
    for left in range(0, len(content), max(len(content) // 60, 1)):
        path = tmp_path / f"{left:05}.{kind.replace('e', '') if kind == 'jpeg' else kind}"
        path.write_bytes(content[:left])
        with suppress(DataError):
            assert np.array_equal(pixels(path), expected)
    assert len(damaged(tmp_path)) == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize(("kind", "lost"), [("jpeg", 9), ("png", 28)])
def test_a_file_that_ends_in_zeros(tmp_path: Path, kind: str, lost: int) -> None:
    """So a file system leaves what was not written before a power failure; Pillow reads it without a word."""
    content, expected = whole(kind)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(content[:-lost] + bytes(lost))
    assert not np.array_equal(pixels(path), expected)
    (tmp_path / f"half.{kind}").write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    (tmp_path / f"whole.{kind}").write_bytes(content + bytes(40))
    assert list(damaged(tmp_path)) == [0, 1]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_png_that_is_damaged_within(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(3), "RGB")
    assert not damaged(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    assert "a.png: not a readable image" in damaged(tmp_path)[0]


def test_what_is_no_image(tmp_path: Path) -> None:
    bad = {
        "bomb.png": png(40_000, 40_000, 1, 0, b""),
        "empty.jpg": b"",
        "text.jpg": b"<html>404</html>",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    draw(tmp_path / "good.jpg")
    messages = damaged(tmp_path)
    assert sorted(Path(message.partition(":")[0]).name for message in messages.values()) == sorted([*bad, "gone.jpg"])
    assert any("exceeds limit" in message for message in messages.values())


def test_pictures_in_other_formats_are_counted(tmp_path: Path) -> None:
    for name in ("a/1.HEIC", "a/2.heic", "b/3.gif", "b/4.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"are left out \(1 .gif, 2 .heic\); convert them to PNG or JPEG"):
        assert list_images(tmp_path).names.tolist() == [b"b/4.png"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert damaged(tmp_path) == {0: f"{tmp_path / 'pipe.png'}: no regular file; remove it"}


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="a/again: the link leads to one of its own parent folders"):
        list_images(tmp_path)


def test_folders_listed_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["c-a/1.png", "c/2.png", "c/in/3.PNG", "c/in/er/4.jpg", "d/5.jpeg", "e/6.bmp", "top.gif.png"]
    for name in [*names, "c/.hidden/7.png", "c/.8.png", "d/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "linked").symlink_to(tmp_path / "c" / "in")
    (tmp_path / "e" / "gone.png").symlink_to(tmp_path / "nowhere")
    names += ["linked/3.PNG", "linked/er/4.jpg", "e/gone.png"]
    one = list_images(tmp_path)
    assert one.names.tolist() == sorted(map(os.fsencode, names))
    lengths = {os.fsencode(name): len(name) for name in names} | {b"e/gone.png": -1}
    lengths |= {b"linked/3.PNG": len("c/in/3.PNG"), b"linked/er/4.jpg": len("c/in/er/4.jpg")}
    assert one.sizes.tolist() == [lengths[name] for name in one.names.tolist()]
    assert len(set(one.keys.tolist())) == len(names)

    monkeypatch.setattr(image_files, "MANY", 1)
    monkeypatch.setattr(image_files, "_processes", lambda: 2)
    started = mock.Mock(wraps=ProcessPoolExecutor)
    monkeypatch.setattr(image_files, "ProcessPoolExecutor", started)
    several = list_images(tmp_path)
    assert started.called
    for ours, theirs in zip(one, several, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()
    (tmp_path / "c" / "in" / "again").symlink_to(tmp_path / "c")
    with pytest.raises(DataError, match="c/in/again: the link leads to one of its own parent folders"):
        list_images(tmp_path)


def test_names_in_any_encoding(root: Path) -> None:
    path = draw(root / "photo" / "mug" / "x.png").rename(root / "photo" / "mug" / os.fsdecode(b"caf\xe9.png"))
    data = folders(root, protocol="all")
    data.check()
    assert str(path) in data.dataset("photo", "train").files
    assert len(data.fingerprint()) == 16


# ---------------------------------------------------------------- left out


def test_damaged_files_are_left_out_and_counted(root: Path) -> None:
    before = names(folders(root), "photo")
    lost = [before["train"][0], before["train"][5], before["test"][1]]
    for name in lost:
        (root / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"\(and 2 more files of domain 'photo'\), or leave .*--data.damaged skip"):
        folders(root).dataset("photo", "train")
    data = folders(root, damaged="skip")
    with pytest.warns(UserWarning, match="'photo': 3 of 20 images are damaged and left out; the first: .*bike"):
        after = names(data, "photo")
    assert after == {split: [name for name in part if name not in lost] for split, part in before.items()}
    assert names(data, "art") == names(folders(root), "art")
    assert data.left_out == {"photo": 3}
    data.check()
    for split in ("train", "val", "test"):
        dataset = data.dataset("photo", split)
        assert [dataset.classes[dataset[i][1]] for i in range(len(dataset))] == [
            Path(file).parent.name for file in dataset.files
        ]


# ---------------------------------------------------------------- remembered checks


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], set[str]]:
    """Names of the files that a check of a folder opens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: set[str] = set()
    check = image_files._fault

    def noted(path: Path) -> str | None:
        read.add(path.name)
        return check(path)

    monkeypatch.setattr(image_files, "_fault", noted)

    def by(folder: Path) -> set[str]:
        read.clear()
        damaged(folder)
        return set(read)

    return by


@pytest.fixture
def few(tmp_path: Path) -> Path:
    for i in range(4):
        draw(tmp_path / "few" / f"{i}.bmp", value=i)
    return tmp_path / "few"


def test_only_new_and_changed_files_are_read(few: Path, opened: Callable[[Path], set[str]]) -> None:
    assert opened(few) == {"0.bmp", "1.bmp", "2.bmp", "3.bmp"}
    assert opened(few) == set()
    draw(few / "2.bmp", value=9)  # of the same size
    draw(few / "new.bmp", value=8)
    assert opened(few) == {"2.bmp", "new.bmp"}
    (few / "3.bmp").write_bytes(b"")
    assert opened(few) == opened(few) == {"3.bmp"}  # a damaged file is not remembered
    draw(few / "3.bmp")
    stat = (few / "0.bmp").stat()
    draw(few / "0.bmp", value=7)
    os.utime(few / "0.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `rsync --times` does
    assert opened(few) == {"0.bmp", "3.bmp"}
    few.rename(few.with_name("moved"))
    assert len(opened(few.with_name("moved"))) == 5


def test_a_link_is_read_again_when_its_file_changes(few: Path, opened: Callable[[Path], set[str]]) -> None:
    links = few.with_name("links")
    links.mkdir()
    (links / "link.bmp").symlink_to(few / "1.bmp")
    assert [opened(links), opened(links)] == [{"link.bmp"}, set()]
    draw(few / "1.bmp", value=9)
    assert opened(links) == {"link.bmp"}


@pytest.mark.parametrize("content", [b"", b"no array", None, "cut", "words"])
def test_a_broken_memory_does_no_harm(
    few: Path, opened: Callable[[Path], set[str]], content: bytes | str | None, tmp_path: Path
) -> None:
    opened(few)
    (memory,) = (tmp_path / "cache" / "lightning_da" / "images").iterdir()
    written = memory.read_bytes()
    memory.unlink()
    if isinstance(content, bytes):
        memory.write_bytes(content)
    elif content == "cut":
        memory.write_bytes(written[:-3])
    elif content == "words":
        np.save(memory, np.array(["a", "b"]))
    assert len(opened(few)) == 4
    assert opened(few) == set()


def test_without_a_place_for_the_memory(few: Path, opened: Callable[[Path], set[str]], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(opened(few)) == len(opened(few)) == 4


def test_a_second_start_and_a_test_read_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folders(root)
    first.check()

    def read(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(image_files, "_fault", read)
    second = folders(root)
    second.check()
    assert second.fingerprint() == first.fingerprint()
    draw(root / "art" / "mug" / "00.jpg", value=5, size=(40, 40))
    with pytest.raises(AssertionError, match=r"mug/00\.jpg"):
        folders(root).fingerprint()


# ---------------------------------------------------------------- while a fit runs


def test_the_error_of_a_loading_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def raised() -> None:
        try:
            try:
                raise OSError("inner: cause")
            except OSError as error:
                raise DataError("a.jpg: not a readable image (inner: cause)") from error
        except DataError:
            ExceptionWrapper(where="in DataLoader worker process 3").reraise()

    with pytest.raises(DataError) as caught, loading_errors():
        raised()
    assert str(caught.value) == "a.jpg: not a readable image (inner: cause)"
    with pytest.raises(DataError) as plain, loading_errors():
        raise DataError("b.jpg: a: b")
    assert str(plain.value) == "b.jpg: a: b"
    monkeypatch.setenv("LIGHTNING_DA_DEBUG", "1")
    with pytest.raises(DataError, match=r"Traceback(?s:.*)inner: cause") as full, loading_errors():
        raised()
    assert one_line(full.value) == "a.jpg: not a readable image (inner: cause)"


@pytest.mark.parametrize("first", [RuntimeError, ConnectionResetError])
def test_a_killed_process_is_found_behind_other_errors(first: type[Exception]) -> None:
    """Torch raises its error at whatever the program does: here it writes to a store, which has errors of its own."""
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    killed.__context__ = first("closed")
    store = KeyError("the store")
    store.__cause__ = killed
    for error in (killed, store):
        with (
            pytest.raises(RunError, match=r"was killed.*\(.*\(pid 7\) is killed by signal: Killed\)"),
            loading_errors(),
        ):
            raise error


def test_a_killed_process_is_known_before_its_signal() -> None:
    with pytest.raises(RunError, match="was killed"), loading_errors():
        raise ConnectionResetError(104, "Connection reset by peer")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes differ") as caught, loading_errors():
        raise RuntimeError("shapes differ")
    assert not isinstance(caught.value, RunError)
    with pytest.raises(RunError, match="diverged"), loading_errors():
        raise RunError("diverged")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Fits, lets something happen after the first step, and returns the one line of the error and the failure."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)

    def fit(happens: Callable[[], None], code: int, workers: int) -> str:
        def after(*_: Any) -> None:
            happens()

        monkeypatch.setattr(DANN, "on_train_batch_end", after)
        with pytest.raises(SystemExit) as stop:
            main([*IMAGES, "--trainer.max_steps=400", f"--data.num_workers={workers}", "--trainer.callbacks=[]"])
        assert stop.value.code == code
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line or "Traceback" in line]
        assert lines == [str(stop.value)]
        (run,) = latest()
        assert run.info.status == "FAILED"
        line = lines[0].removeprefix("lightning-da: error: ")
        assert run.data.tags["failure"].partition(": ")[2] == line
        return line

    return fit


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["deleted", "cut"])
def test_a_file_that_is_lost_while_a_fit_runs(said: Callable[..., str], workers: int, kind: str) -> None:
    def lose() -> None:
        for path in Path("images/q").rglob("*.png"):
            path.unlink() if kind == "deleted" else path.write_bytes(path.read_bytes()[:70])

    line = said(lose, code=2, workers=workers)
    assert Path(line.partition(": ")[0]).is_relative_to(Path.cwd() / "images" / "q")
    assert ("the file is gone; put it back" if kind == "deleted" else "not a readable image") in line


def test_a_loading_process_that_is_killed(said: Callable[..., str]) -> None:
    def kill() -> None:
        pid = multiprocessing.active_children()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    line = said(kill, code=1, workers=2)
    assert "a process that loads samples was killed, perhaps for lack of memory" in line
    assert "set fewer with --data.num_workers" in line


def test_the_run_says_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main([*IMAGES, "--data.root=cut_images", "--data.damaged=skip"])
    assert latest()[0].data.tags["left_out"] == "1 damaged of p"
