"""The owner's files: every form, as other programs write them, and what is wrong with damaged ones."""

from __future__ import annotations

import gzip
import io
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from planc.errors import DataError
from runtime.serving.data import Offer, Source, read


def offers(path: Path, image_size: int | None = None) -> dict[str, Offer]:
    return {each.name: each for each in read(Source("d", path, image_size=image_size))}


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


# -- what can be read -----------------------------------------------------------------------------------


def test_one_safetensor_has_the_name_of_its_source(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.arange(6.0).view(2, 3)}, tmp_path / "a.safetensors")
    (offer,) = read(Source("scans", tmp_path / "a.safetensors", tags=["#xrays", "#scans"], description="hm"))
    assert (offer.name, offer.tags, offer.description) == ("scans", ("#scans", "#xrays"), "hm")
    assert offer.tensor.equal(torch.arange(6.0).view(2, 3))


def test_several_safetensors_have_names_of_their_own(tmp_path: Path) -> None:
    tensors = {"x": torch.ones(2, dtype=torch.bfloat16), "y": torch.tensor([True, False])}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    found = offers(tmp_path / "a.safetensors")
    assert {name: each.tags for name, each in found.items()} == {"d/x": ("#d", "#x"), "d/y": ("#d", "#y")}
    assert all(found[f"d/{key}"].tensor.equal(tensor) for key, tensor in tensors.items())
    assert found["d/x"].description == "a.safetensors"


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", ">i4", ">f8"],
)
def test_numpy_arrays(tmp_path: Path, dtype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "several.npz", x=array, y=array.T)
    np.savez_compressed(tmp_path / "one.npz", x=array)
    expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    for name in ("a.npy", "one.npz"):
        (offer,) = read(Source("d", tmp_path / name))
        assert offer.name == "d"
        assert offer.tensor.dtype == expected.dtype
        assert offer.tensor.equal(expected)
        offer.tensor.zero_()  # memory of its own, not the file's
    assert offers(tmp_path / "a.npy")["d"].tensor.equal(expected)
    found = offers(tmp_path / "several.npz")
    assert found["d/x"].tensor.equal(expected)
    assert found["d/y"].tensor.equal(expected.T)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_numpy_arrays_of_few_elements(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    assert tuple(offers(tmp_path / "a.npy")["d"].tensor.shape) == shape


@pytest.mark.parametrize(
    ("kind", "dtype"), [(8, "u1"), (9, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_files(tmp_path: Path, kind: int, dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a.idx").write_bytes(idx(array, kind))
    (tmp_path / "b-ubyte.gz").write_bytes(gzip.compress(idx(array, kind)))
    for name in ("a.idx", "b-ubyte.gz"):
        assert offers(tmp_path / name)["d"].tensor.equal(torch.from_numpy(array))


def test_a_folder_of_mnist(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not read: the unpacked one is there")
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(labels))
    (tmp_path / "notes.idx.txt").write_text("of no interest")
    (tmp_path / ".hidden.idx").write_text("nor this")
    found = offers(tmp_path)
    assert sorted(found) == ["d/t10k-labels", "d/train-images", "d/train-labels"]
    assert found["d/train-images"].tags == ("#d", "#train-images")
    assert found["d/train-labels"].tensor.tolist() == [0, 1, 2]


def picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    picture(tmp_path / "ill" / "1.png", (4, 3), (10, 20, 30))
    picture(tmp_path / "ill" / "2.PNG", (4, 3), (1, 2, 3))
    picture(tmp_path / "healthy" / "1.bmp", (4, 3), (5, 6, 7))
    (tmp_path / "ill" / "notes.txt").write_text("no image")
    found = offers(tmp_path)
    images, labels = found["d/images"], found["d/labels"]
    assert images.tensor.dtype == torch.uint8
    assert list(images.tensor.shape) == [3, 3, 3, 4]  # n, colour, height, width
    assert images.tensor[:, :, 0, 0].tolist() == [[5, 6, 7], [10, 20, 30], [1, 2, 3]]
    assert labels.tensor.tolist() == [0, 1, 1]
    assert labels.description == "classes: 0 healthy, 1 ill"


def test_images_of_several_sizes_are_scaled(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", (4, 3), (9, 9, 9))
    picture(tmp_path / "a" / "2.png", (5, 5), (7, 7, 7))
    with pytest.raises(DataError, match=r"2\.png is \(3, 5, 5\), others are \(3, 3, 4\).*--image-size"):
        read(Source("d", tmp_path))
    images = offers(tmp_path, image_size=8)["d/images"].tensor
    assert list(images.shape) == [2, 3, 8, 8]
    assert images.unique().tolist() == [7, 9]


# -- what cannot ----------------------------------------------------------------------------------------


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "raw.npy", "raw.npz"])
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    sprung = tmp_path / "sprung"
    trap = np.array([Trap(sprung)], dtype=object)
    if name == "a.npz":
        np.savez(tmp_path / name, x=trap)
    elif name == "a.npy":
        np.save(tmp_path / name, trap)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match="d"):
        read(Source("d", tmp_path / name))
    assert not sprung.exists()


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.complex64), np.array(["a"]), np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4")]
)
def test_arrays_of_other_kinds(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy: expected booleans, integers or floats, got an array of"):
        read(Source("d", tmp_path / "a.npy"))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn])
def test_dtypes_that_plans_do_not_have(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, dtype=torch.uint8).to(dtype)
    safetensors.torch.save_file({"x": tensor}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"a\.safetensors is torch\..*, which no plan takes"):
        read(Source("d", tmp_path / "a.safetensors"))


def written(tmp_path: Path) -> dict[str, bytes]:
    """A good file of each form, as bytes."""
    safetensors.torch.save_file({"x": torch.ones(40)}, tmp_path / "a.safetensors")
    array = np.arange(40, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=array)
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "a.idx").write_bytes(idx(array))
    (tmp_path / "a.idx.gz").write_bytes(gzip.compress(idx(array)))
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_damaged_files(tmp_path: Path) -> None:
    """Cut anywhere, and of a foreign form: an error that names the file, and no other."""
    for name, data in written(tmp_path).items():
        path = tmp_path / name
        for wrong in (b"", b"\x89PNG\r\n", b"\0" * 64, bytes(data[:-1]), data[: len(data) // 2], data[:9]):
            path.write_bytes(wrong)
            with pytest.raises(DataError, match=f"{name}"):
                read(Source("d", path))


def test_bytes_behind_an_idx_file(tmp_path: Path) -> None:
    data = idx(np.zeros(4, np.uint8)) + b"more"
    (tmp_path / "a.idx").write_bytes(data)
    (tmp_path / "a.idx.gz").write_bytes(gzip.compress(data))
    for name, more in (("a.idx", "more"), ("a.idx.gz", "more")):
        with pytest.raises(DataError, match=rf"expected 4 bytes of elements for shape \[4\], got {more}"):
            read(Source("d", tmp_path / name))


def test_a_file_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"a\.csv: cannot tell what it is: expected a \.safetensors, \.npz"):
        read(Source("d", tmp_path / "a.csv"))
    with pytest.raises(DataError, match=r"nothing\.npz is not there"):
        read(Source("d", tmp_path / "nothing.npz"))


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has neither IDX files nor folders of images in it"):
        read(Source("d", tmp_path))
    (tmp_path / "class").mkdir()
    with pytest.raises(DataError, match="no images in the folders of"):
        read(Source("d", tmp_path))
    (tmp_path / "class" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot be read: .*1\.png"):
        read(Source("d", tmp_path))


def test_empty_containers(tmp_path: Path) -> None:
    safetensors.torch.save_file({}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz")
    for name in ("a.safetensors", "a.npz"):
        with pytest.raises(DataError, match="has no tensors in it"):
            read(Source("d", tmp_path / name))


# -- what a file says of its own size -------------------------------------------------------------------


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def npy_of(shape: str) -> bytes:
    """A .npy file that claims a shape, and has hardly any elements."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(16)


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x.npy", data)
    return out.getvalue()


HUGE = "(4000000000, 1000)"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.idx", bytes([0, 0, 8, 3]) + b"\xff" * 12),
        ("a.idx", bytes([0, 0, 8, 255]) + b"\x01" * 4 * 255),
        ("a.idx", bytes([0, 0, 8, 255]) + b"\x01" * 8),
        ("a.idx.gz", gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12, mtime=0)),
        ("a.npy", npy_of(HUGE)),
        ("a.npy", npy_of("(-4,)")),
        ("a.npz", zipped(npy_of(HUGE))),
        ("a.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"),
        (
            "b.safetensors",
            struct.pack("<Q", 72)
            + b'{"x":{"dtype":"U8","shape":[4000000000000],"data_offsets":[0,4000000000000]}}'[:72],
        ),
    ],
)
def test_sizes_that_files_claim_are_not_believed(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    before = peak()
    with pytest.raises(DataError):
        read(Source("d", tmp_path / name))
    assert peak() - before < 64 * 2**20


def test_what_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    """A small file of 600 MB of zeros behind a header of ten elements: no more than ten are unpacked."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 10]))
        for _ in range(75):
            file.write(bytes(2**23))
    (tmp_path / "a.idx.gz").write_bytes(packed.getvalue())
    before = peak()
    with pytest.raises(DataError, match=r"expected 10 bytes of elements for shape \[10\], got more"):
        read(Source("d", tmp_path / "a.idx.gz"))
    assert peak() - before < 64 * 2**20


def test_what_says_that_it_unpacks_to_too_much(tmp_path: Path) -> None:
    (tmp_path / "a.idx.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", 2**31 + 1)))
    with pytest.raises(
        DataError, match="unpacks to 2147483649 bytes, at most 2147483648 are read: unpack it"
    ):
        read(Source("d", tmp_path / "a.idx.gz"))
    data = bytearray(zipped(bytes(100)))
    at = data.rindex(b"PK\x01\x02")  # the entry in the directory at the end: bytes 24 to 28 are its size
    struct.pack_into("<I", data, at + 24, 2**31 + 1)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match="unpacks to 2147483649 bytes"):
        read(Source("d", tmp_path / "a.npz"))
