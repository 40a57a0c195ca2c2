"""The owner's data files as tensors: safetensors, NumPy, IDX (as MNIST comes), folders of images by class.

Nothing here runs code out of a file: no pickle, and arrays of objects are refused. What a file says of its
own size is believed only as far as its bytes go.
"""

from __future__ import annotations

import gzip
import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from planc.errors import DataError
from planc.ir import from_torch

FORMS = (
    "a .safetensors, .npz or .npy file, an IDX file (*-ubyte, .idx, also .gz) or a folder of them, "
    "or a folder with a folder of images for each class"
)
_IDX_TYPES: dict[int, str] = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_NAME = re.compile(r"(-ubyte|\.idx\d*)(\.gz)?$")
_UNPACKED = 2**31
"""Bytes that a packed file may unpack to; a file that is larger itself may hold as many as it has."""
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, slots=True)
class Source:
    """What the owner offers.

    Attributes:
        name: what clients find it by, as the tag ``#name``.
        path: where it is.
        private: whether its elements may not leave.
        tags: more to find it by.
        description: for people.
        image_size: the side to which images in a folder are scaled; needed if they differ in size.
    """

    name: str
    path: Path
    private: bool = True
    tags: Sequence[str] = ()
    description: str = ""
    image_size: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """One tensor of a source: several in one are named ``name/key``, and have the tag ``#key`` too."""

    name: str
    tensor: torch.Tensor
    tags: tuple[str, ...]
    description: str


def read(source: Source) -> list[Offer]:
    """The tensors of a source.

    Raises:
        DataError: it is not there, none of the forms, damaged, or of a dtype that plans do not have. Says
            which file and what was expected.
    """
    path = source.path
    if not path.exists():
        raise DataError(f"data {source.name!r}: {path} is not there: expected {FORMS}")
    try:
        tensors, said = _read_folder(source) if path.is_dir() else (_reader(path)(path), "")
    except DataError:
        raise
    except Exception as error:  # those of five libraries, for bytes that may be anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"data {source.name!r}: {path} cannot be read: {said[:300]}") from None
    if not tensors:
        raise DataError(f"data {source.name!r}: {path} has no tensors in it")
    description = source.description or said or path.name
    offers: list[Offer] = []
    for key, tensor in tensors.items():
        if from_torch(tensor.dtype) is None:
            raise DataError(
                f"data {source.name!r}: {key or path.name} is {tensor.dtype}, which no plan takes: "
                "convert it first"
            )
        tags = [f"#{source.name}", *([f"#{key}"] if key else []), *source.tags]
        name = f"{source.name}/{key}" if key else source.name
        offers.append(Offer(name, tensor, tuple(dict.fromkeys(tags)), description))
    return offers


def _reader(path: Path) -> Callable[[Path], Mapping[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        return _read_safetensors
    if path.suffix == ".npz":
        return _read_npz
    if path.suffix == ".npy":
        return _read_npy
    if _is_idx(path):
        return lambda file: {"": _read_idx(file)}
    raise DataError(f"{path}: cannot tell what it is: expected {FORMS}")


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    return _named(safetensors.torch.load_file(path))


def _read_npy(path: Path) -> Mapping[str, torch.Tensor]:
    # Mapped, so that a size beyond the end of the file is an error and takes no memory.
    return {"": _from_numpy(np.load(path, mmap_mode="r", allow_pickle=False), path.name)}


def _read_npz(path: Path) -> Mapping[str, torch.Tensor]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: expected a file as numpy.savez writes it, which is a zip file")
    with zipfile.ZipFile(path) as packed:
        _check_unpacked(path, sum(entry.file_size for entry in packed.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        return _named({key: _from_numpy(arrays[key], f"{path.name}: {key}") for key in arrays.files})


def _check_unpacked(path: Path, nbytes: int) -> None:
    most = max(_UNPACKED, path.stat().st_size)
    if nbytes > most:
        raise DataError(f"{path}: unpacks to {nbytes} bytes, at most {most} are read: unpack it first")


def _named(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return {"": next(iter(tensors.values()))} if len(tensors) == 1 else tensors


def _from_numpy(array: np.ndarray, what: str) -> torch.Tensor:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what}: expected booleans, integers or floats, got an array of {array.dtype}")
    # Its own, of this machine's byte order: torch takes no other, and none that cannot be written to.
    dtype = array.dtype.newbyteorder("=")
    native = array.astype(dtype, order="C", subok=False, copy=not array.flags.writeable)
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise DataError(f"{what}: {error}") from None


def _read_folder(source: Source) -> tuple[Mapping[str, torch.Tensor], str]:
    files = [
        path for path in sorted(source.path.iterdir()) if path.is_file() and not path.name.startswith(".")
    ]
    if found := [path for path in files if _is_idx(path)]:
        return _read_idx_folder(found), ""
    classes = [path for path in sorted(source.path.iterdir()) if path.is_dir()]
    if classes:
        return _read_images(source, classes)
    raise DataError(f"data {source.name!r}: {source.path} has neither IDX files nor folders of images in it")


# -- IDX: http://yann.lecun.com/exdb/mnist/ describes it ----------------------------------------------------


def _is_idx(path: Path) -> bool:
    return _IDX_NAME.search(path.name) is not None


def _read_idx_folder(files: Sequence[Path]) -> Mapping[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for path in files:
        key = re.sub(r"[-.]idx\d*$", "", path.name.removesuffix(".gz").removesuffix("-ubyte"))
        if key not in out:  # else it is there packed and unpacked
            out[key] = _read_idx(path)
    return out


def _read_idx(path: Path) -> torch.Tensor:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
            raise DataError(
                f"{path}: expected an IDX file, which begins with 00 00 and a type; got {head.hex(' ')}"
            )
        dtype, rank = np.dtype(_IDX_TYPES[head[2]]), head[3]
        sizes = file.read(4 * rank)
        if len(sizes) < 4 * rank:
            raise DataError(f"{path}: ends within its header, which announces {rank} sizes")
        shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
        expected = math.prod(shape) * dtype.itemsize
        if path.suffix == ".gz":
            _check_unpacked(path, expected)
        elif path.stat().st_size != 4 + 4 * rank + expected:
            raise DataError(_wrong_size(path, shape, expected, path.stat().st_size - 4 - 4 * rank))
        data = file.read(expected + 1)  # one more would be too many, and no more than that are unpacked
    if len(data) != expected:
        raise DataError(_wrong_size(path, shape, expected, len(data)))
    return _from_numpy(np.frombuffer(data, dtype).reshape(shape), str(path))


def _wrong_size(path: Path, shape: Sequence[int], expected: int, got: int) -> str:
    more = "more" if got > expected else str(got)
    return f"{path}: expected {expected} bytes of elements for shape {list(shape)}, got {more}"


# -- images -------------------------------------------------------------------------------------------------


def _read_images(source: Source, classes: Sequence[Path]) -> tuple[Mapping[str, torch.Tensor], str]:
    """``images`` as u8[n, 3, h, w] and ``labels`` as i64[n], classes numbered by name as ImageFolder does."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DataError(
            f"data {source.name!r}: folders of images need Pillow: pip install 'planc[demo]'"
        ) from None
    images: list[torch.Tensor] = []
    labels: list[int] = []
    size = (source.image_size, source.image_size) if source.image_size else None
    for label, folder in enumerate(classes):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in _IMAGES:
                continue
            with Image.open(path) as image:
                rgb = image.convert("RGB")
            if size is not None:
                rgb = rgb.resize(size, Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
            if images and pixels.shape != images[0].shape:
                raise DataError(
                    f"data {source.name!r}: {path} is {tuple(pixels.shape)}, others are "
                    f"{tuple(images[0].shape)}: give a size to scale all images to (--image-size)"
                )
            images.append(pixels)
            labels.append(label)
    if not images:
        raise DataError(f"data {source.name!r}: no images in the folders of {source.path}")
    names = ", ".join(f"{label} {folder.name}" for label, folder in enumerate(classes))
    return {"images": torch.stack(images), "labels": torch.tensor(labels)}, f"classes: {names}"
