"""Classification tasks for the studies: made ones, published image sets and the user's own arrays. Nothing is downloaded."""

import difflib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from galvanic.studies import published
from galvanic.studies.published import Arrays
from galvanic.studies.synthetic import Gaussians

NAMES = ("digits", "gaussians", "mnist", "fashion-mnist", "cifar10", "cifar100", "cifar100-coarse")
SPLITS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A classification task, split into training and test images.

    Images have the shape (n, channels, height, width), float32, and are scaled to zero mean and unit variance, each channel by
    the statistics of the training images. Labels have the shape (n,), int64, and are 0 ... classes - 1.

    Args:
        note: what a report must say about the data; empty where there is nothing to say.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    note: str


def load(
    name: str,
    *,
    root: Path | None = None,
    partial_test: bool = False,
    train_samples: int | None = None,
    test_samples: int | None = None,
    shrink: int | None = None,
) -> Dataset:
    """The dataset of that name, read from local files and checked.

    Args:
        name: one of `NAMES`, or the path of an `.npz` file with the arrays x_train, y_train, x_test and y_test: images
            (n, channels, height, width), (n, height, width) or (n, features), integer labels 0 ... k - 1. Features become
            channels, so that each is scaled by itself.
        root: folder with the published files; not needed by digits, gaussians and `.npz` files.
        partial_test: accept a CIFAR test file that has its first records only; complete files are not affected.
        train_samples: keep a fixed, stratified subset of the training images; smaller subsets are parts of larger ones.
        test_samples: the same of the test images, so that a long study can be cut down.
        shrink: average squares of this many by this many pixels into one, before scaling.

    Raises:
        FileNotFoundError: a file is missing; the message says where it was looked for and where it is to be had.
        ValueError: the name is unknown, `root` is missing, a file is not the published one, an array is not usable, a subset cannot
            hold every class or is larger than the set, or images cannot be divided into such squares.

    >>> digits = load("digits", train_samples=100)
    >>> digits.x_train.shape, digits.x_test.shape, digits.classes
    (torch.Size([100, 1, 8, 8]), torch.Size([600, 1, 8, 8]), 10)
    """
    arrays = read(name, root, partial_test)
    if train_samples is not None:
        arrays = subset(arrays, train_samples)
    if test_samples is not None:
        arrays = subset(arrays, test_samples, split="test")
    if shrink is not None:
        arrays = shrunk(arrays, shrink)
    return scaled(name, arrays)


def read(name: str, root: Path | None, partial_test: bool) -> Arrays:
    if name.lower().endswith(".npz"):
        return read_npz(Path(name))
    if name == "digits":
        return read_digits()
    if name == "gaussians":
        return Gaussians().arrays()
    readers: dict[str, Callable[[Path], Arrays]] = {
        "mnist": lambda folder: published.read_idx(published.MNIST, folder),
        "fashion-mnist": lambda folder: published.read_idx(published.FASHION_MNIST, folder),
        "cifar10": lambda folder: published.read_cifar10(folder, partial_test=partial_test),
        "cifar100": lambda folder: published.read_cifar100(folder, partial_test=partial_test),
        "cifar100-coarse": lambda folder: published.read_cifar100(folder, partial_test=partial_test, coarse=True),
    }
    if name not in readers:
        near = " or ".join(map(repr, difflib.get_close_matches(name.lower(), NAMES))) or "one of these"
        raise ValueError(f"unknown dataset {name!r}; did you mean {near}? known: {', '.join(NAMES)}, or the path of an .npz file")
    if root is None:
        raise ValueError(f"{name} is read from its published files: say where they are with --root DIR")
    return readers[name](Path(root))


def read_digits() -> Arrays:
    """The 1,797 digits of 8x8 pixels that come with scikit-learn."""
    from sklearn.datasets import load_digits  # here, not above: it takes a second
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x, y = digits.images[:, None], digits.target
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=600, stratify=y, random_state=0)
    note = "fixed stratified split of scikit-learn's 1,797 digits, which have no official test set"
    return Arrays(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, note=note)


def subset(arrays: Arrays, samples: int, *, split: Literal["train", "test"] = "train") -> Arrays:
    """A fixed stratified choice of the training or test images, in their old order."""
    x, y, what = getattr(arrays, f"x_{split}"), getattr(arrays, f"y_{split}"), {"train": "training", "test": "test"}[split]
    total, shown = len(y), np.unique(y)
    if not len(shown) <= samples <= total:
        raise ValueError(f"{split}_samples is {samples:,}; expected {len(shown)} (one of each class) to {total:,} (all {what} images)")
    if samples == total:
        return arrays
    shuffled = np.random.default_rng(0).permutation(total)
    rank = np.empty(total)  # an image's place among its class, from 0 to 1: the lowest ranks hold every class in proportion
    for label in shown:
        members = shuffled[y[shuffled] == label]
        rank[members] = np.arange(len(members)) / len(members)
    chosen = np.sort(np.argsort(rank, kind="stable")[:samples])
    part = replace(arrays, **{f"x_{split}": x[chosen], f"y_{split}": y[chosen]})
    return noted(part, f"stratified subset of {samples:,} of the {total:,} {what} images")


def shrunk(arrays: Arrays, factor: int) -> Arrays:
    """The images (n, channels, height, width) averaged over squares of factor x factor pixels."""
    height, width = arrays.x_train.shape[2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"shrink is {factor}; expected a number that divides height and width of the images, {height} x {width}")
    if factor == 1:
        return arrays
    x_train, x_test = (averaged(x, factor) for x in (arrays.x_train, arrays.x_test))
    note = f"images of {height} x {width} pixels averaged to {height // factor} x {width // factor}"
    return noted(replace(arrays, x_train=x_train, x_test=x_test), note)


def averaged(x: NDArray[Any], factor: int) -> NDArray[Any]:
    n, channels, height, width = x.shape
    squares = x.reshape(n, channels, height // factor, factor, width // factor, factor)
    return squares.mean((3, 5), dtype=np.float64)  # the largest float32 numbers have a sum, too


def noted(arrays: Arrays, note: str) -> Arrays:
    return replace(arrays, note="; ".join(filter(None, (arrays.note, note))))


def scaled(name: str, arrays: Arrays) -> Dataset:
    x_train, x_test = (torch.from_numpy(x.astype(np.float32)) for x in (arrays.x_train, arrays.x_test))
    y_train, y_test = (torch.from_numpy(y.astype(np.int64)) for y in (arrays.y_train, arrays.y_test))
    std, mean = torch.std_mean(x_train, dim=(0, 2, 3), correction=0, keepdim=True)  # (1, channels, 1, 1)
    std[std == 0] = 1  # a constant channel becomes zero
    for x in (x_train, x_test):
        x.sub_(mean).div_(std)  # in place: CIFAR-10 is 0.6 GB
    classes = int(y_train.max()) + 1
    return Dataset(name=name, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, classes=classes, note=arrays.note)


def read_npz(path: Path) -> Arrays:
    """The user's own arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an array is missing, pickled, empty, of a wrong type or shape, or holds a wrong value.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    blob = path.read_bytes()
    try:
        x_train, y_train, x_test, y_test = npz_arrays(blob)
        x_train, x_test = images(x_train, "x_train"), images(x_test, "x_test")
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"x_train and x_test differ in shape: {x_train.shape[1:]} and {x_test.shape[1:]} an image")
        y_train, y_test = labels(y_train, "y_train", len(x_train)), labels(y_test, "y_test", len(x_test))
        check_classes(y_train, y_test)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    note = f"own data, {len(x_train):,} training and {len(x_test):,} test images, sha256 {hashlib.sha256(blob).hexdigest()[:12]}..."
    return Arrays(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, note=note)


def npz_arrays(blob: bytes) -> list[NDArray[Any]]:
    if not blob.startswith((b"PK\3\4", b"PK\5\6")):  # before numpy sees it: what is no archive, numpy takes for a pickle
        raise ValueError(f"not an .npz archive; write one with numpy.savez and the arrays {', '.join(SPLITS)}")
    try:
        archive = np.load(io.BytesIO(blob), allow_pickle=False)
        found = sorted(archive)
    except Exception as error:  # a damaged archive raises a dozen kinds
        raise ValueError(f"a damaged .npz archive ({one_line(error)})") from error
    missing = [split for split in SPLITS if split not in found]
    if missing:
        raise ValueError(f"no array {', '.join(missing)}; expected {', '.join(SPLITS)}; found {', '.join(map(repr, found)) or 'none'}")
    return [plain_array(archive, split) for split in SPLITS]


def plain_array(archive: Any, split: str) -> NDArray[Any]:
    try:
        return np.asarray(archive[split])
    except Exception as error:
        raise ValueError(f"{split} is not a plain array of numbers; pickled objects are never loaded ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def images(x: NDArray[Any], what: str) -> NDArray[np.float32]:
    """The array as float32 images (n, channels, height, width), all numbers finite."""
    if x.dtype.kind not in "buif":
        raise ValueError(f"{what} has dtype {x.dtype}; expected real numbers")
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"{what} has shape {x.shape}; expected (n, channels, height, width), (n, height, width) or (n, features)")
    if x.size == 0:
        raise ValueError(f"{what} is empty: its shape is {x.shape}")
    with np.errstate(over="ignore"):  # found below
        y = x.astype(np.float32)
    finite = np.isfinite(y)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), x.shape))
        raise ValueError(f"{what}{list(first)} is {x[first]}; expected finite float32 numbers")
    return y.reshape(len(y), *{2: (-1, 1, 1), 3: (1, *y.shape[1:]), 4: y.shape[1:]}[y.ndim])


def labels(y: NDArray[Any], what: str, n: int) -> NDArray[Any]:
    if y.dtype.kind not in "ui":
        raise ValueError(f"{what} has dtype {y.dtype}; expected integer labels")
    if y.shape != (n,):
        raise ValueError(f"{what} has shape {y.shape}; expected ({n},), one label an image")
    if y.min() < 0:
        raise ValueError(f"{what}[{y.argmin()}] is {y.min()}; expected labels 0, 1, ..., none negative")
    return y


def check_classes(y_train: NDArray[Any], y_test: NDArray[Any]) -> None:
    """Refuse labels that are not 0 ... k - 1, each of them shown in training."""
    seen = np.unique(y_train)
    if len(seen) < 2:
        raise ValueError(f"y_train shows one class only ({seen[0]}); expected at least 2")
    if seen[-1] >= len(seen):
        at = int((y_train >= len(seen)).argmax())
        raise ValueError(f"y_train[{at}] is {y_train[at]}, out of range: {len(seen)} classes are labelled 0 to {len(seen) - 1}")
    if y_test.max() >= len(seen):
        at = int((y_test >= len(seen)).argmax())
        raise ValueError(f"y_test[{at}] is {y_test[at]}, a class that training never shows: it shows 0 to {len(seen) - 1}")
