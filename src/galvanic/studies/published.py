"""Readers of published image sets, each file checked against its published checksum, if it has one: idx (MNIST) and binary CIFAR."""

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
    """A file as its authors published it: size and digest are those of the uncompressed content; None where no digest is known."""

    name: str
    size: int
    digest: str | None
    algorithm: str = "sha256"


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The files of one published set, the folder in which they are usually kept and where they are to be had."""

    name: str
    folder: str
    address: str
    files: tuple[Published, ...]


@dataclass(frozen=True, kw_only=True)
class Cifar(Collection):
    """A set of 32x32 colour images in records: one byte a label, then the red, green and blue plane. Its last file is the test set.

    Args:
        title: its name in the literature.
        labels: number of classes that each label of a record tells apart.
        pickled_folder: of the other version, which is not read.
    """

    title: str
    labels: tuple[int, ...]
    pickled_folder: str

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return len(self.labels) + 3 * 32 * 32


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

CIFAR10_RECORD, CIFAR100_RECORD = 1 + 3 * 32 * 32, 2 + 3 * 32 * 32
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
CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    labels=(10,),
    folder="cifar-10-batches-bin",
    pickled_folder="cifar-10-batches-py",
    address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    files=tuple(Published(name=n, size=10_000 * CIFAR10_RECORD, digest=d, algorithm="md5") for n, d in CIFAR10_MD5.items()),
)
# Of this set only the archive has a published checksum; its unpacked files cannot be compared with it.
CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    labels=(20, 100),
    folder="cifar-100-binary",
    pickled_folder="cifar-100-python",
    address="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz (md5 03b5dce01913d631647c71ecec9e9cb8)",
    files=(
        Published(name="train.bin", size=50_000 * CIFAR100_RECORD, digest=None),
        Published(name="test.bin", size=10_000 * CIFAR100_RECORD, digest=None),
    ),
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
    train, test, note = cifar_files(CIFAR10, cifar_paths(CIFAR10, root), partial_test)
    (x_train, y_train), (x_test, y_test) = records(CIFAR10, train), records(CIFAR10, test)
    return Arrays(x_train=x_train, y_train=y_train[:, 0], x_test=x_test, y_test=y_test[:, 0], note=note)


def read_cifar100(root: Path, *, partial_test: bool, coarse: bool = False) -> Arrays:
    """CIFAR-100 from its binary version: images (n, 3, 32, 32) and labels (n,), as uint8.

    Its unpacked files have no published checksum. Instead, each must have the published size, 20 superclasses with as many images each,
    and 100 classes with as many images each, all images of a class in one superclass.

    Args:
        root: holds train.bin and test.bin, or the folder `cifar-100-binary` with them.
        partial_test: accept a test file that ends early, at the end of a record.
        coarse: label by superclass (20) instead of class (100).

    Raises:
        FileNotFoundError: a file is missing, or only there in the pickled version.
        ValueError: a file is not the published one, as far as can be told.
    """
    paths = cifar_paths(CIFAR100, root)
    train, test, partial = cifar_files(CIFAR100, paths, partial_test)
    (x_train, y_train), (x_test, y_test) = records(CIFAR100, train), records(CIFAR100, test)
    check_taxonomy(y_train, paths[0])
    if not partial:
        check_taxonomy(y_test, paths[1])
    note = "; ".join(filter(None, ("CIFAR-100 checked by size and labels: its unpacked files have no published checksum", partial)))
    column = 0 if coarse else 1
    return Arrays(x_train=x_train, y_train=y_train[:, column], x_test=x_test, y_test=y_test[:, column], note=note)


def check_taxonomy(y: NDArray[np.uint8], path: Path) -> None:
    """Refuse labels (n, 2) of a complete CIFAR-100 file if classes are not equally frequent, or one is in several superclasses."""
    coarse, fine = (np.bincount(column, minlength=n) for column, n in zip(y.T, CIFAR100.labels, strict=True))
    pairs = len(np.unique(y, axis=0))
    if (coarse * 20 == len(y)).all() and (fine * 100 == len(y)).all() and pairs == 100:
        return
    came = f"{coarse.min():,} to {coarse.max():,} images a superclass, {fine.min():,} to {fine.max():,} a class, {pairs} pairs of both"
    raise ValueError(f"{path}: not CIFAR-100: {came}; expected {len(y) // 20:,}, {len(y) // 100:,} and 100")


def cifar_files(collection: Cifar, paths: list[Path], partial_test: bool) -> tuple[bytes, bytes, str]:
    """The records of training and test, and what is to be said about the test set."""
    *train, test = collection.files
    blobs = [verified(content(path, file), path, file) for path, file in zip(paths[:-1], train, strict=True)]
    test_blob, note = cifar_test(collection, paths[-1], test, partial_test)
    for path, blob in zip(paths, (*blobs, test_blob), strict=True):
        check_labels(collection, blob, path)
    return b"".join(blobs), test_blob, note


def check_labels(collection: Cifar, blob: bytes, path: Path) -> None:
    """Refuse what has the size of records, but not their labels."""
    for at, classes in enumerate(collection.labels):
        largest = max(blob[at :: collection.record])
        if largest >= classes:
            raise ValueError(f"{path}: no {collection.title} records: a label is {largest}; expected 0..{classes - 1}")


def cifar_paths(collection: Cifar, root: Path) -> list[Path]:
    try:
        return [find(collection, file, root) for file in collection.files]
    except FileNotFoundError:
        for path in pickled_files(collection, root):
            raise FileNotFoundError(
                f"{path} is {collection.title}'s pickled (python) version, which is never unpickled;"
                f" download and unpack the binary version: {collection.address}"
            ) from None
        raise


def pickled_files(collection: Cifar, root: Path) -> Iterator[Path]:
    folders = (root / collection.pickled_folder, root / collection.folder, root)
    paths = (folder / file.name.removesuffix(".bin") for folder in folders for file in collection.files)
    return (path for path in paths if path.is_file())


def cifar_test(collection: Cifar, path: Path, file: Published, partial: bool) -> tuple[bytes, str]:
    """The test records and what is to be said about them: nothing where they are complete."""
    blob = content(path, file)
    if len(blob) >= file.size:
        return verified(blob, path, file), ""
    have = f"{path}: not complete: {len(blob):,} of {file.size:,} bytes"
    n, rest = divmod(len(blob), collection.record)
    if n == 0 or rest:
        raise ValueError(f"{have}; even --partial-test wants a whole number (at least 1) of {collection.record:,}-byte records")
    total = file.size // collection.record
    if not partial:
        raise ValueError(f"{have} ({n:,} of {total:,} images); --partial-test accepts it, and every report then says so")
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
    if len(blob) == file.size and file.digest in (None, came):
        return blob
    size = f"{len(blob):,} bytes" if len(blob) <= file.size else f"more than {file.size:,} bytes"
    raise ValueError(f"{path}: {size}{fingerprint(file, came)}; expected {described(file)}")


def described(file: Published) -> str:
    return f"{file.size:,} bytes{fingerprint(file, file.digest)} (uncompressed)"


def fingerprint(file: Published, came: str | None) -> str:
    return f", {file.algorithm} {came[:12]}..." if came and file.digest else ""


def digest(blob: bytes, algorithm: str) -> str:
    return hashlib.new(algorithm, blob, usedforsecurity=False).hexdigest()


def idx_array(blob: bytes) -> NDArray[np.uint8]:
    """The array in a verified idx file: two zero bytes, the type, the number of dimensions, each dimension (4 bytes, big-endian), data."""
    dimensions = blob[3]
    shape = [int.from_bytes(blob[4 + 4 * k : 8 + 4 * k], "big") for k in range(dimensions)]
    return np.frombuffer(blob, np.uint8, count=math.prod(shape), offset=4 + 4 * dimensions).reshape(shape)


def records(collection: Cifar, blob: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """CIFAR records as images (n, 3, 32, 32) and labels (n, label bytes)."""
    rows = np.frombuffer(blob, np.uint8).reshape(-1, collection.record)
    first = len(collection.labels)
    return rows[:, first:].reshape(-1, 3, 32, 32), rows[:, :first]
