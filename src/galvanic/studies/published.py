"""Readers of published image sets, each file checked against its published checksum: idx (MNIST) and binary CIFAR-10."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A classification task before scaling: images (n, channels, height, width) of any number type, labels (n,)."""

    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file as its authors published it: size and digest are those of the uncompressed content."""

    name: str
    size: int
    digest: str
    algorithm: str = "sha256"


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The files of one published set, the folder in which they are usually kept and where they are to be had."""

    name: str
    folder: str
    address: str
    files: tuple[Published, ...]


IDX_SIZES = {
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}


def idx_files(*digests: str) -> tuple[Published, ...]:
    return tuple(Published(name=n, size=size, digest=d) for (n, size), d in zip(IDX_SIZES.items(), digests, strict=True))


# SHA-256 of files whose git blob hashes (images) and official gzip MD5s (labels) were compared with the published ones;
# all eight are found, the same, in independent public repositories.
MNIST = Collection(
    name="mnist",
    folder="MNIST/raw",
    address="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files=idx_files(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
FASHION_MNIST = Collection(
    name="fashion-mnist",
    folder="FashionMNIST/raw",
    address="https://github.com/zalandoresearch/fashion-mnist",
    files=idx_files(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)

CIFAR10_RECORD = 1 + 3 * 32 * 32  # the label, then the red, green and blue plane
CIFAR10_FIRST_1000 = "8314c96d7cd65618193bab23acdd5d4c4af15bf6dd00a1781d55beedf3be1ef5"  # SHA-256 of the first 1,000 test records
# MD5 as in A. Krizhevsky's data, found the same in independent public loaders: it guards against damage, not against malice.
CIFAR10_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
CIFAR10 = Collection(
    name="cifar10",
    folder="cifar-10-batches-bin",
    address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    files=tuple(Published(name=n, size=10_000 * CIFAR10_RECORD, digest=d, algorithm="md5") for n, d in CIFAR10_MD5.items()),
)


def read_idx(collection: Collection, root: Path) -> Arrays:
    """The images (n, 1, 28, 28) and labels (n,) of MNIST or Fashion-MNIST, as uint8.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not the published one.
    """
    paths = [find(collection, file, root) for file in collection.files]
    parts = [idx_array(verified(content(path, file), path, file)) for path, file in zip(paths, collection.files, strict=True)]
    return Arrays(x_train=parts[0][:, None], y_train=parts[1], x_test=parts[2][:, None], y_test=parts[3])


def read_cifar10(root: Path, *, partial_test: bool) -> Arrays:
    """CIFAR-10 from its binary version: images (n, 3, 32, 32) and labels (n,), as uint8.

    Args:
        root: holds the batches, or the folder `cifar-10-batches-bin` with them.
        partial_test: accept a test file that ends early, at the end of a record.

    Raises:
        FileNotFoundError: a batch is missing, or only there in the pickled version.
        ValueError: a batch is not the published one.
    """
    *train, test = CIFAR10.files
    *train_paths, test_path = cifar10_paths(root)
    blobs = [verified(content(path, file), path, file) for path, file in zip(train_paths, train, strict=True)]
    test_blob, note = cifar10_test(test_path, test, partial_test)
    x_train, y_train = records(b"".join(blobs))
    x_test, y_test = records(test_blob)
    return Arrays(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, note=note)


def cifar10_paths(root: Path) -> list[Path]:
    try:
        return [find(CIFAR10, file, root) for file in CIFAR10.files]
    except FileNotFoundError:
        for path in pickled_batches(root):
            raise FileNotFoundError(
                f"{path} is CIFAR-10's pickled (python) version, which is never unpickled;"
                f" download and unpack the binary version: {CIFAR10.address}"
            ) from None
        raise


def pickled_batches(root: Path) -> Iterator[Path]:
    folders = (root / "cifar-10-batches-py", root / CIFAR10.folder, root)
    paths = (folder / file.name.removesuffix(".bin") for folder in folders for file in CIFAR10.files)
    return (path for path in paths if path.is_file())


def cifar10_test(path: Path, file: Published, partial: bool) -> tuple[bytes, str]:
    """The test batch and what is to be said about it: nothing where it is complete."""
    blob = content(path, file)
    if len(blob) >= file.size:
        return verified(blob, path, file), ""
    have = f"{path}: not complete: {len(blob):,} of {file.size:,} bytes"
    n, rest = divmod(len(blob), CIFAR10_RECORD)
    if n == 0 or rest:
        raise ValueError(f"{have}; even --partial-test wants a whole number (at least 1) of {CIFAR10_RECORD:,}-byte records")
    total = file.size // CIFAR10_RECORD
    if not partial:
        raise ValueError(f"{have} ({n:,} of {total:,} images); --partial-test accepts it, and every report then says so")
    if max(blob[::CIFAR10_RECORD]) > 9:
        raise ValueError(f"{have}, and no CIFAR-10 records: a label is {max(blob[::CIFAR10_RECORD])}; expected 0..9")
    if digest(blob, "sha256") == CIFAR10_FIRST_1000:
        return blob, f"official test set, first {n:,} of {total:,} images (verified by SHA-256)"
    return blob, f"partial test set, {n:,} of {total:,} images: the checksum of a partial test file cannot be compared"


def find(collection: Collection, file: Published, root: Path) -> Path:
    """The file, plain or gzipped, in the collection's folder under `root` or in `root` itself."""
    folders = (root / collection.folder, root)
    for path in (folder / name for folder in folders for name in (file.name, f"{file.name}.gz")):
        if path.is_file():
            return path
    looked = " or ".join(map(str, folders))
    raise FileNotFoundError(f"{collection.name}: no {file.name} (or {file.name}.gz) in {looked}; to be had from {collection.address}")


def content(path: Path, file: Published) -> bytes:
    """The uncompressed content of a plain or gzipped file: at most `file.size + 1` bytes, so that a gzip bomb cannot fill the memory."""
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"  # not the suffix: browsers unzip in passing and keep the name
        stream.seek(0)
        try:
            return gzip.GzipFile(fileobj=stream).read(file.size + 1) if zipped else stream.read(file.size + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            came = f"{path.stat().st_size:,} bytes of damaged gzip ({error})"
            raise ValueError(f"{path}: {came}; expected {described(file)}, plain or gzipped") from error


def verified(blob: bytes, path: Path, file: Published) -> bytes:
    """`blob`, which was read from `path`, if it is the published content."""
    came = digest(blob, file.algorithm)
    if len(blob) == file.size and came == file.digest:
        return blob
    size = f"{len(blob):,} bytes" if len(blob) <= file.size else f"more than {file.size:,} bytes"
    raise ValueError(f"{path}: {size}, {file.algorithm} {came[:12]}...; expected {described(file)}")


def described(file: Published) -> str:
    return f"{file.size:,} bytes, {file.algorithm} {file.digest[:12]}... (uncompressed)"


def digest(blob: bytes, algorithm: str) -> str:
    return hashlib.new(algorithm, blob, usedforsecurity=False).hexdigest()


def idx_array(blob: bytes) -> NDArray[np.uint8]:
    """The array in a verified idx file: two zero bytes, the type, the number of dimensions, each dimension (4 bytes, big-endian), data."""
    dimensions = blob[3]
    shape = [int.from_bytes(blob[4 + 4 * k : 8 + 4 * k], "big") for k in range(dimensions)]
    return np.frombuffer(blob, np.uint8, count=math.prod(shape), offset=4 + 4 * dimensions).reshape(shape)


def records(blob: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """CIFAR-10 records as images (n, 3, 32, 32) and labels (n,)."""
    rows = np.frombuffer(blob, np.uint8).reshape(-1, CIFAR10_RECORD)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]
