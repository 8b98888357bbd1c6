import gzip
import hashlib
import io
import itertools
import os
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from galvanic.studies import published
from galvanic.studies.datasets import NAMES, Dataset, load, read, shrunk, subset
from galvanic.studies.published import CIFAR10_RECORD, CIFAR100_RECORD, Arrays, Collection, Published

rng = np.random.default_rng(0)
DATA = Path(os.environ.get("GALVANIC_DATA", ""))
needs_data = pytest.mark.skipif("GALVANIC_DATA" not in os.environ, reason="GALVANIC_DATA, a folder with the published files, is not set")


def refusal(kind: type[Exception], name: str, **options) -> str:
    """The message with which `load` refuses; one line, always."""
    with pytest.raises(kind) as caught:
        load(name, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def assert_a_scaled_task(data: Dataset) -> None:
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.ndim == 4
        assert y.shape == x.shape[:1]
    std, mean = torch.std_mean(data.x_train.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-5, rtol=0)
    assert data.y_train.unique().tolist() == list(range(data.classes))


# ---------------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_a_scaled_task_of_1197_training_and_600_test_images():
    data = load("digits")
    assert_a_scaled_task(data)
    assert data.x_train.shape == (1197, 1, 8, 8)
    assert data.x_test.shape == (600, 1, 8, 8)
    assert (data.name, data.classes) == ("digits", 10)
    assert "no official test set" in data.note


def test_the_split_of_the_digits_never_changes():
    def fingerprint(y: torch.Tensor) -> str:
        return hashlib.sha256(bytes(y.tolist())).hexdigest()[:12]

    data = load("digits")
    assert (fingerprint(data.y_train), fingerprint(data.y_test)) == ("2dea1ea65032", "8ffc052d6c42")


def test_the_test_images_are_scaled_by_the_statistics_of_training(tmp_path):
    x_train, x_test = rng.normal(3, 2, (50, 2, 4, 4)), rng.normal(-1, 5, (20, 2, 4, 4))
    data = load(own(tmp_path, x_train=x_train, x_test=x_test, y_train=np.arange(50) % 3, y_test=np.arange(20) % 3))
    mean, std = x_train.mean((0, 2, 3), keepdims=True), x_train.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(data.x_test.numpy(), (x_test - mean) / std, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- train_samples


@pytest.mark.parametrize("n", [10, 57, 500, 1197])
def test_a_subset_has_every_class_in_proportion(n):
    whole, part = load("digits"), load("digits", train_samples=n)
    assert_a_scaled_task(part)
    assert len(part.x_train) == len(part.y_train) == n
    share = whole.y_train.bincount() * n / len(whole.y_train)
    assert (part.y_train.bincount() - share).abs().max() <= 1
    assert torch.equal(part.y_test, whole.y_test)


def test_a_subset_is_the_same_every_time_and_is_part_of_a_larger_one():
    numbers, y = np.arange(90), np.arange(90) % 7 // 3  # the images number themselves; the classes are unequal
    arrays = Arrays(x_train=numbers, y_train=y, x_test=numbers, y_test=y)
    chosen = [subset(arrays, n).x_train.tolist() for n in (3, 20, 50, 90)]
    assert chosen == [subset(arrays, n).x_train.tolist() for n in (3, 20, 50, 90)]
    assert all(set(small) < set(large) for small, large in itertools.pairwise(chosen))
    assert all(some == sorted(set(some)) for some in chosen)


def test_a_subset_is_scaled_by_its_own_statistics(tmp_path):
    file = own(tmp_path, x_train=np.arange(12.0)[:, None], x_test=np.arange(6.0)[:, None])
    assert_a_scaled_task(load(file, train_samples=5))


def test_a_subset_is_named_in_the_note_and_a_whole_set_is_not():
    assert load("digits", train_samples=57).note == load("digits").note + "; stratified subset of 57 of the 1,197 training images"
    assert load("digits", train_samples=1197).note == load("digits").note


@pytest.mark.parametrize("n", [-1, 0, 9, 1198])
def test_a_subset_smaller_than_the_classes_or_larger_than_the_set_is_refused(n):
    message = refusal(ValueError, "digits", train_samples=n)
    assert message == f"train_samples is {n:,}; expected 10 (one of each class) to 1,197 (all training images)"


# -------------------------------------------------------------------------------------------------------- test_samples, shrink


def test_a_subset_of_the_test_images_is_stratified_and_leaves_training_alone():
    whole, part = load("digits"), load("digits", test_samples=57)
    assert torch.equal(part.x_train, whole.x_train)
    assert torch.equal(part.y_train, whole.y_train)
    assert len(part.x_test) == len(part.y_test) == 57
    share = whole.y_test.bincount() * 57 / len(whole.y_test)
    assert (part.y_test.bincount() - share).abs().max() <= 1
    assert part.note == whole.note + "; stratified subset of 57 of the 600 test images"
    assert load("digits", test_samples=600).note == whole.note


def test_a_subset_of_the_test_images_is_part_of_a_larger_one_and_keeps_image_and_label_together():
    numbers, y = np.arange(90), np.arange(90) % 7 // 3
    arrays = Arrays(x_train=numbers, y_train=y, x_test=numbers, y_test=y)
    parts = [subset(arrays, n, split="test") for n in (3, 20, 50, 90)]
    for small, large in itertools.pairwise(parts):
        assert set(small.x_test.tolist()) < set(large.x_test.tolist())
        assert small.y_test.tolist() == y[small.x_test].tolist()


def test_a_subset_of_a_test_set_that_lacks_a_class_has_the_classes_that_it_shows(tmp_path):
    file = own(tmp_path, y_test=np.array([0, 2, 2, 0, 2, 2]))
    assert sorted(load(file, test_samples=2).y_test.tolist()) == [0, 2]
    assert "expected 2 (one of each class) to 6 (all test images)" in refusal(ValueError, file, test_samples=1)


@pytest.mark.parametrize("n", [-1, 0, 9, 601])
def test_a_test_subset_smaller_than_the_classes_or_larger_than_the_set_is_refused(n):
    message = refusal(ValueError, "digits", test_samples=n)
    assert message == f"test_samples is {n:,}; expected 10 (one of each class) to 600 (all test images)"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shrunk_images_are_means_over_squares(tmp_path, dtype):
    x = rng.integers(0, 256, (30, 3, 6, 4)).astype(dtype)
    file = own(tmp_path, x_train=x[:20], y_train=np.arange(20) % 4, x_test=x[20:], y_test=np.arange(10) % 4)
    data = load(file, shrink=2)
    assert_a_scaled_task(data)
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(x).double(), 2)
    std, mean = torch.std_mean(pooled[:20], dim=(0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(torch.cat([data.x_train, data.x_test]).double(), (pooled - mean) / std, atol=1e-5, rtol=0)
    assert data.note == load(file).note + "; images of 6 x 4 pixels averaged to 3 x 2"


def test_the_largest_numbers_shrink_without_overflow(tmp_path):
    big = np.float32(3e38)
    file = own(tmp_path, x_train=np.full((12, 2, 2), big), x_test=np.full((6, 2, 2), big))
    assert shrunk(read(file, None, False), 2).x_train.max() == big


def test_shrinking_by_one_changes_nothing():
    whole, same = load("digits"), load("digits", shrink=1)
    assert torch.equal(same.x_train, whole.x_train)
    assert same.note == whole.note


@pytest.mark.parametrize("factor", [-2, 0, 3, 16])
def test_images_that_cannot_be_divided_are_not_shrunk(factor):
    message = refusal(ValueError, "digits", shrink=factor)
    assert message == f"shrink is {factor}; expected a number that divides height and width of the images, 8 x 8"


# ------------------------------------------------------------------------------------------------------------------- gaussians


def test_the_gaussians_are_a_scaled_task_that_says_what_can_be_reached():
    data = load("gaussians", train_samples=1000)
    assert_a_scaled_task(data)
    assert data.x_train.shape == (1000, 1, 8, 8)
    assert data.x_test.shape == (5000, 1, 8, 8)
    assert (data.name, data.classes) == ("gaussians", 10)
    assert data.note.startswith("made: 10 Gaussian classes, on which no classifier is expected to exceed 95.9 %")


# ---------------------------------------------------------------------------------------------------------------- names and root


@pytest.mark.parametrize(
    ("typed", "near"), [("minst", "'mnist'"), ("fashion_mnist", "'fashion-mnist'"), ("CIFAR-10", "'cifar10'"), ("", "one of these")]
)
def test_an_unknown_name_is_refused_with_the_nearest_one(typed, near):
    message = refusal(ValueError, typed)
    assert f"unknown dataset {typed!r}; did you mean {near}" in message
    assert "known: digits, gaussians, mnist, fashion-mnist, cifar10, cifar100, cifar100-coarse, or the path of an .npz file" in message


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("digits", "gaussians")])
def test_a_missing_root_is_asked_for(name):
    assert refusal(ValueError, name) == f"{name} is read from its published files: say where they are with --root DIR"


# -------------------------------------------------------------------------------------------------------- MNIST, Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def republished(collection: Collection, blobs: list[bytes]) -> Collection:
    """The collection as if `blobs` were what its authors published."""
    files = tuple(
        replace(file, size=len(blob), digest=hashlib.new(file.algorithm, blob).hexdigest())
        for file, blob in zip(collection.files, blobs, strict=True)
    )
    return replace(collection, files=files)


IMAGES = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
LABELS = np.arange(50, dtype=np.uint8) % 10
IDX = [idx(IMAGES[:30]), idx(LABELS[:30]), idx(IMAGES[30:]), idx(LABELS[30:])]
IDX_SETS = {"mnist": ("MNIST", "MNIST/raw"), "fashion-mnist": ("FASHION_MNIST", "FashionMNIST/raw")}


@pytest.fixture(params=list(IDX_SETS))
def idx_set(request, monkeypatch, tmp_path) -> tuple[str, Collection, Path]:
    """Name, collection of small files, and the empty folder that will hold them."""
    attribute, folder = IDX_SETS[request.param]
    collection = republished(getattr(published, attribute), IDX)
    monkeypatch.setattr(published, attribute, collection)
    (tmp_path / folder).mkdir(parents=True)
    return request.param, collection, tmp_path / folder


def write(folder: Path, collection: Collection, blobs: list[bytes], suffix: str = "") -> None:
    for file, blob in zip(collection.files, blobs, strict=True):
        (folder / f"{file.name}{suffix}").write_bytes(blob)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_idx_files_are_read_plain_or_gzipped_from_either_folder(idx_set, tmp_path, suffix, zipped, bare):
    name, collection, folder = idx_set
    blobs = [gzip.compress(blob) for blob in IDX] if zipped else IDX
    write(tmp_path if bare else folder, collection, blobs, suffix)
    data = load(name, root=tmp_path)
    assert_a_scaled_task(data)
    assert data.x_train.shape == (30, 1, 28, 28)
    assert (data.name, data.classes, data.note) == (name, 10, "")
    assert data.y_test.tolist() == LABELS[30:].tolist()
    x = IMAGES[:30].astype(float)
    np.testing.assert_allclose(data.x_train[:, 0].numpy(), (x - x.mean()) / x.std(), atol=1e-5)


@pytest.mark.parametrize("lost", range(4))
def test_a_missing_idx_file_is_named_with_where_it_was_looked_for_and_is_to_be_had(idx_set, tmp_path, lost):
    name, collection, folder = idx_set
    write(folder, collection, IDX)
    lost_file = collection.files[lost].name
    (folder / lost_file).unlink()
    message = refusal(FileNotFoundError, name, root=tmp_path)
    assert message.startswith(f"{name}: no {lost_file} (or {lost_file}.gz) in {folder} or {tmp_path}; to be had from ")
    assert message.endswith({"mnist": "amazonaws.com/mnist/", "fashion-mnist": "github.com/zalandoresearch/fashion-mnist"}[name])


def flipped(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


@pytest.mark.parametrize("broken", range(4))
@pytest.mark.parametrize(
    ("damage", "came"),
    [
        (flipped, "{size:,} bytes, sha256 {digest}..."),
        (lambda blob: blob[: len(blob) // 2], "{size:,} bytes, sha256 {digest}..."),
        (lambda blob: b"", "0 bytes, sha256 e3b0c44298fc..."),
        (lambda blob: blob[:2] + b"\x0d" + blob[3:], "{size:,} bytes, sha256 {digest}..."),
        (lambda blob: blob + b"more", "more than {published:,} bytes, sha256 "),
        (lambda blob: gzip.compress(flipped(blob)), "{published:,} bytes, sha256 "),
        (lambda blob: gzip.compress(blob)[:-20], "bytes of damaged gzip (Compressed file ended"),
        (lambda blob: gzip.compress(blob)[:-8] + b"\0" * 8, "bytes of damaged gzip (CRC check failed"),
        (lambda blob: b"\x1f\x8b" + bytes(50), "52 bytes of damaged gzip ("),
        (lambda blob: gzip.compress(blob)[:10] + b"\xff" * 50, "60 bytes of damaged gzip (Error -3"),
    ],
    ids=["flipped", "half", "empty", "magic", "longer", "zipped-flipped", "zipped-half", "zipped-crc", "zipped-header", "zipped-garbage"],
)
def test_an_idx_file_that_is_not_the_published_one_is_refused(idx_set, tmp_path, broken, damage, came):
    name, collection, folder = idx_set
    file, blob = collection.files[broken], damage(IDX[broken])
    write(folder, collection, [blob if k == broken else whole for k, whole in enumerate(IDX)])
    message = refusal(ValueError, name, root=tmp_path)
    assert message.startswith(f"{folder / file.name}: ")
    assert came.format(size=len(blob), published=file.size, digest=hashlib.sha256(blob).hexdigest()[:12]) in message
    assert f"; expected {file.size:,} bytes, sha256 {file.digest[:12]}... (uncompressed)" in message


def test_a_gzip_bomb_does_not_fill_the_memory(idx_set, tmp_path):
    name, collection, folder = idx_set
    write(folder, collection, [gzip.compress(bytes(50_000_000)), *IDX[1:]])
    tracemalloc.start()
    message = refusal(ValueError, name, root=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"more than {collection.files[0].size:,} bytes" in message
    assert peak < 2_000_000


def test_another_set_in_files_of_the_same_names_is_refused(idx_set, tmp_path):
    name, collection, _ = idx_set
    write(tmp_path, collection, [idx(255 - IMAGES[:30]), *IDX[1:]])
    assert "train-images-idx3-ubyte: 23,536 bytes, sha256 " in refusal(ValueError, name, root=tmp_path)


# -------------------------------------------------------------------------------------------------------------------- CIFAR-10


def cifar_records(n: int) -> bytes:
    pixels = rng.integers(0, 256, (n, CIFAR10_RECORD), dtype=np.uint8)
    pixels[:, 0] = np.arange(n) % 10
    return pixels.tobytes()


BATCHES = [cifar_records(10) for _ in range(6)]
HALF = BATCHES[5][: 4 * CIFAR10_RECORD]


@pytest.fixture
def cifar(monkeypatch, tmp_path) -> Path:
    """A folder with small batches of 10 images that are taken for the published ones."""
    collection = republished(published.CIFAR10, BATCHES)
    monkeypatch.setattr(published, "CIFAR10", collection)
    folder = tmp_path / collection.folder
    folder.mkdir()
    write(folder, collection, BATCHES)
    return folder


@pytest.mark.parametrize("partial_test", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_cifar10_is_read_from_either_folder(cifar, tmp_path, bare, partial_test):
    data = load("cifar10", root=cifar if bare else tmp_path, partial_test=partial_test)
    assert_a_scaled_task(data)
    assert data.x_train.shape == (50, 3, 32, 32)
    assert data.x_test.shape == (10, 3, 32, 32)
    assert data.note == ""
    planes = np.frombuffer(BATCHES[4], np.uint8).reshape(10, -1)[3, 1:].reshape(3, 32, 32)  # image 43, red plane first
    for channel in range(3):
        assert np.corrcoef(planes[channel].ravel(), data.x_train[43, channel].flatten())[0, 1] > 0.9999


@pytest.mark.parametrize("broken", range(6))
@pytest.mark.parametrize("partial_test", [True, False])
def test_a_cifar10_batch_with_another_checksum_is_refused(cifar, tmp_path, broken, partial_test):
    file, blob = published.CIFAR10.files[broken], flipped(BATCHES[broken])
    (cifar / file.name).write_bytes(blob)
    message = refusal(ValueError, "cifar10", root=tmp_path, partial_test=partial_test)
    came, expected = hashlib.md5(blob).hexdigest()[:12], file.digest[:12]
    assert message == f"{cifar / file.name}: 30,730 bytes, md5 {came}...; expected 30,730 bytes, md5 {expected}... (uncompressed)"


@pytest.mark.parametrize("broken", range(5))
@pytest.mark.parametrize(("part", "size"), [(HALF, "12,292"), (b"", "0")], ids=["half", "empty"])
def test_a_part_of_a_training_batch_is_never_accepted(cifar, tmp_path, broken, part, size):
    (cifar / f"data_batch_{broken + 1}.bin").write_bytes(part)
    message = refusal(ValueError, "cifar10", root=tmp_path, partial_test=True)
    assert f"data_batch_{broken + 1}.bin: {size} bytes, md5 " in message
    assert "expected 30,730 bytes" in message


def test_half_a_gzipped_batch_is_refused(cifar, tmp_path):
    (cifar / "data_batch_1.bin").write_bytes(gzip.compress(BATCHES[0])[:1000])
    assert "data_batch_1.bin: 1,000 bytes of damaged gzip (" in refusal(ValueError, "cifar10", root=tmp_path)


def test_a_test_batch_that_is_too_long_is_refused(cifar, tmp_path):
    (cifar / "test_batch.bin").write_bytes(BATCHES[5] + HALF)
    assert "test_batch.bin: more than 30,730 bytes" in refusal(ValueError, "cifar10", root=tmp_path, partial_test=True)


def test_an_incomplete_test_batch_is_refused_and_the_option_named(cifar, tmp_path):
    (cifar / "test_batch.bin").write_bytes(HALF)
    message = refusal(ValueError, "cifar10", root=tmp_path)
    assert message == (
        f"{cifar / 'test_batch.bin'}: not complete: 12,292 of 30,730 bytes (4 of 10 images);"
        " --partial-test accepts it, and every report then says so"
    )


def test_an_incomplete_test_batch_is_accepted_on_request_and_the_note_says_so(cifar, tmp_path):
    (cifar / "test_batch.bin").write_bytes(HALF)
    data = load("cifar10", root=tmp_path, partial_test=True)
    assert data.y_test.tolist() == [0, 1, 2, 3]
    assert data.note == "partial test set, 4 of 10 images: the checksum of a partial test file cannot be compared"


def test_the_known_first_test_images_are_verified(cifar, tmp_path, monkeypatch):
    (cifar / "test_batch.bin").write_bytes(HALF)
    monkeypatch.setattr(published, "CIFAR10_FIRST_1000", hashlib.sha256(HALF).hexdigest())
    data = load("cifar10", root=tmp_path, partial_test=True)
    assert data.note == "official test set, first 4 of 10 images (verified by SHA-256)"


@pytest.mark.parametrize("size", [0, 1, CIFAR10_RECORD - 1, CIFAR10_RECORD + 1, 4 * CIFAR10_RECORD - 1])
@pytest.mark.parametrize("partial_test", [True, False])
def test_a_test_batch_that_ends_within_a_record_is_refused(cifar, tmp_path, size, partial_test):
    (cifar / "test_batch.bin").write_bytes(HALF[:size])
    message = refusal(ValueError, "cifar10", root=tmp_path, partial_test=partial_test)
    assert f"test_batch.bin: not complete: {size:,} of 30,730 bytes; even --partial-test wants a whole number" in message
    assert message.endswith("(at least 1) of 3,073-byte records")


def test_a_partial_test_batch_of_something_else_is_refused(cifar, tmp_path):
    (cifar / "test_batch.bin").write_bytes(b"text" * CIFAR10_RECORD)
    message = refusal(ValueError, "cifar10", root=tmp_path, partial_test=True)
    assert message.endswith("no CIFAR-10 records: a label is 120; expected 0..9")


@pytest.mark.parametrize("lost", range(6))
def test_a_missing_cifar10_batch_is_named_with_where_it_was_looked_for_and_is_to_be_had(cifar, tmp_path, lost):
    name = published.CIFAR10.files[lost].name
    (cifar / name).unlink()
    message = refusal(FileNotFoundError, "cifar10", root=tmp_path, partial_test=True)
    address = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert message == f"cifar10: no {name} (or {name}.gz) in {cifar} or {tmp_path}; to be had from {address}"


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-10-batches-bin", "."])
def test_the_pickled_cifar10_is_recognised_and_the_binary_one_named(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    path = tmp_path / folder / "data_batch_1"
    path.write_bytes(b"\x80\x02}q\x01.")
    message = refusal(FileNotFoundError, "cifar10", root=tmp_path)
    assert message.startswith(f"{path} is CIFAR-10's pickled (python) version, which is never unpickled; download")
    assert message.endswith("the binary version: https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz")


# ------------------------------------------------------------------------------------------------------------------- CIFAR-100


def cifar100_records(per_class: int) -> np.ndarray:
    """Records (n, bytes) in the published layout: a superclass of five classes, the class, the planes."""
    fine = np.arange(100 * per_class) % 100
    pixels = rng.integers(0, 256, (len(fine), CIFAR100_RECORD - 2), dtype=np.uint8)
    return np.column_stack([fine // 5, fine, pixels]).astype(np.uint8)


TRAIN100, TEST100 = cifar100_records(2), cifar100_records(1)


@pytest.fixture
def cifar100(monkeypatch, tmp_path) -> Path:
    """A folder with 200 training and 100 test records whose sizes are taken for the published ones."""
    train, test = published.CIFAR100.files
    files = (replace(train, size=TRAIN100.size), replace(test, size=TEST100.size))
    monkeypatch.setattr(published, "CIFAR100", replace(published.CIFAR100, files=files))
    folder = tmp_path / published.CIFAR100.folder
    folder.mkdir()
    (folder / "train.bin").write_bytes(TRAIN100.tobytes())
    (folder / "test.bin").write_bytes(TEST100.tobytes())
    return folder


def test_the_published_cifar100_has_50000_training_and_10000_test_records():
    assert [(file.name, file.size) for file in published.CIFAR100.files] == [("train.bin", 153_700_000), ("test.bin", 30_740_000)]


@pytest.mark.parametrize("partial_test", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_cifar100_is_read_with_fine_labels_from_either_folder(cifar100, tmp_path, bare, partial_test):
    data = load("cifar100", root=cifar100 if bare else tmp_path, partial_test=partial_test)
    assert_a_scaled_task(data)
    assert data.x_train.shape == (200, 3, 32, 32)
    assert data.x_test.shape == (100, 3, 32, 32)
    assert (data.name, data.classes) == ("cifar100", 100)
    assert data.y_test.tolist() == list(range(100))
    assert data.note == "CIFAR-100 checked by size and labels: its unpacked files have no published checksum"
    planes = TRAIN100[143, 2:].reshape(3, 32, 32)
    for channel in range(3):
        assert np.corrcoef(planes[channel].ravel(), data.x_train[143, channel].flatten())[0, 1] > 0.9999


def test_the_superclasses_of_cifar100_are_the_same_images_with_twenty_labels(cifar100, tmp_path):
    fine, coarse = load("cifar100", root=tmp_path), load("cifar100-coarse", root=tmp_path)
    assert torch.equal(fine.x_train, coarse.x_train)
    assert (coarse.name, coarse.classes) == ("cifar100-coarse", 20)
    assert torch.equal(coarse.y_train, fine.y_train // 5)
    assert torch.equal(coarse.y_test, fine.y_test // 5)


def test_cifar100_is_read_gzipped(cifar100, tmp_path):
    (cifar100 / "train.bin").unlink()
    (cifar100 / "train.bin.gz").write_bytes(gzip.compress(TRAIN100.tobytes(), 1))
    assert load("cifar100", root=tmp_path).x_train.shape == (200, 3, 32, 32)


@pytest.mark.parametrize(
    ("blob", "came"),
    [
        (TRAIN100[:100].tobytes(), "307,400 bytes"),
        (b"", "0 bytes"),
        (TRAIN100.tobytes()[:-1], "614,799 bytes"),
        (TRAIN100.tobytes() + b"more", "more than 614,800 bytes"),
        (gzip.compress(TRAIN100.tobytes(), 1)[:1000], "1,000 bytes of damaged gzip (Compressed file ended"),
    ],
    ids=["half", "empty", "short", "long", "gzip"],
)
@pytest.mark.parametrize("partial_test", [True, False])
def test_a_cifar100_training_file_of_another_size_is_refused(cifar100, tmp_path, blob, came, partial_test):
    (cifar100 / "train.bin").write_bytes(blob)
    message = refusal(ValueError, "cifar100", root=tmp_path, partial_test=partial_test)
    assert message.startswith(f"{cifar100 / 'train.bin'}: {came}")
    assert message.partition("; ")[2].startswith("expected 614,800 bytes (uncompressed)")


def relabelled(records: np.ndarray, at: int, *, coarse: int | None = None, fine: int | None = None) -> bytes:
    changed = records.copy()
    for column, label in ((0, coarse), (1, fine)):
        if label is not None:
            changed[at, column] = label
    return changed.tobytes()


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (relabelled(TRAIN100, 7, fine=100), "no CIFAR-100 records: a label is 100; expected 0..99"),
        (relabelled(TRAIN100, 7, coarse=20), "no CIFAR-100 records: a label is 20; expected 0..19"),
        (TRAIN100[:, [1, 0, *range(2, CIFAR100_RECORD)]].tobytes(), "no CIFAR-100 records: a label is 99; expected 0..19"),
        (relabelled(TRAIN100, 7, fine=8), "not CIFAR-100: 10 to 10 images a superclass, 1 to 3 a class, 100 pairs of both; expected 10, 2"),
        (relabelled(TRAIN100, 7, coarse=2), "not CIFAR-100: 9 to 11 images a superclass, 2 to 2 a class, 101 pairs of both; expected"),
        (np.concatenate([TRAIN100[:199], TRAIN100[:1]]).tobytes(), "not CIFAR-100: 9 to 11 images a superclass, 1 to 3 a class, 100 pairs"),
        (np.where(TRAIN100 == 99, 98, TRAIN100).tobytes(), "not CIFAR-100: 10 to 10 images a superclass, 0 to 4 a class, 99 pairs of both"),
    ],
    ids=["fine", "coarse", "swapped", "wrong-class", "wrong-superclass", "double", "missing-class"],
)  # fmt: skip
def test_a_cifar100_training_file_with_other_labels_is_refused(cifar100, tmp_path, blob, said):
    (cifar100 / "train.bin").write_bytes(blob)
    assert refusal(ValueError, "cifar100", root=tmp_path).startswith(f"{cifar100 / 'train.bin'}: {said}")


def test_a_complete_cifar100_test_file_with_other_labels_is_refused(cifar100, tmp_path):
    (cifar100 / "test.bin").write_bytes(relabelled(TEST100, 7, fine=8))
    assert refusal(ValueError, "cifar100", root=tmp_path).startswith(f"{cifar100 / 'test.bin'}: not CIFAR-100: 5 to 5 images a superclass")


def test_an_incomplete_cifar100_test_file_is_accepted_on_request_only(cifar100, tmp_path):
    (cifar100 / "test.bin").write_bytes(TEST100[:4].tobytes())
    message = refusal(ValueError, "cifar100", root=tmp_path)
    assert "test.bin: not complete: 12,296 of 307,400 bytes (4 of 100 images); --partial-test accepts it" in message
    data = load("cifar100", root=tmp_path, partial_test=True)
    assert data.y_test.tolist() == [0, 1, 2, 3]
    assert data.note.endswith("; partial test set, 4 of 100 images: the checksum of a partial test file cannot be compared")


@pytest.mark.parametrize("size", [0, CIFAR100_RECORD - 1, CIFAR100_RECORD + 1])
def test_a_cifar100_test_file_that_ends_within_a_record_is_refused(cifar100, tmp_path, size):
    (cifar100 / "test.bin").write_bytes(TEST100.tobytes()[:size])
    message = refusal(ValueError, "cifar100", root=tmp_path, partial_test=True)
    assert message.endswith("even --partial-test wants a whole number (at least 1) of 3,074-byte records")


@pytest.mark.parametrize("lost", ["train.bin", "test.bin"])
def test_a_missing_cifar100_file_is_named_with_the_archive_and_its_checksum(cifar100, tmp_path, lost):
    (cifar100 / lost).unlink()
    message = refusal(FileNotFoundError, "cifar100-coarse", root=tmp_path)
    archive = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz (md5 03b5dce01913d631647c71ecec9e9cb8)"
    assert message == f"cifar100: no {lost} (or {lost}.gz) in {cifar100} or {tmp_path}; to be had from {archive}"


@pytest.mark.parametrize("folder", ["cifar-100-python", "cifar-100-binary", "."])
def test_the_pickled_cifar100_is_recognised_and_the_binary_one_named(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    path = tmp_path / folder / "train"
    path.write_bytes(b"\x80\x02}q\x01.")
    message = refusal(FileNotFoundError, "cifar100", root=tmp_path)
    assert message.startswith(f"{path} is CIFAR-100's pickled (python) version, which is never unpickled; download and unpack the binary")
    assert "cifar-100-binary.tar.gz" in message


# -------------------------------------------------------------------------------------------------------------- the user's data


GOOD = {
    "x_train": rng.normal(size=(12, 2, 5, 4)),
    "y_train": np.arange(12) % 3,
    "x_test": rng.normal(size=(6, 2, 5, 4)),
    "y_test": np.arange(6) % 3,
}


def own(folder: Path, **changes) -> str:
    """An .npz file with GOOD arrays and the changed ones; None leaves an array out."""
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(folder / "own.npz", **arrays)
    return str(folder / "own.npz")


def changed(array: str, at: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    copy = GOOD[array].copy()
    copy[at] = value
    return {array: copy}


@pytest.mark.parametrize(
    ("image", "shape"), [((2, 5, 4), (2, 5, 4)), ((5, 4), (1, 5, 4)), ((7,), (7, 1, 1))], ids=["channels", "images", "features"]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8, np.int64, bool])
@pytest.mark.parametrize("label", [np.int64, np.uint8, np.uint64])
def test_own_arrays_become_a_scaled_task(tmp_path, image, shape, dtype, label):
    x = rng.integers(0, 255, (30, *image)) % (2 if dtype is bool else 255)
    file = own(tmp_path, x_train=x[:20].astype(dtype), y_train=np.arange(20).astype(label) % 4, x_test=x[20:].astype(dtype),
               y_test=np.arange(10).astype(label) % 4)  # fmt: skip
    data = load(file)
    assert_a_scaled_task(data)
    assert data.x_train.shape == (20, *shape)
    assert data.x_test.shape == (10, *shape)
    assert (data.name, data.classes) == (file, 4)


def test_the_note_tells_one_own_file_from_another(tmp_path):
    first = load(own(tmp_path)).note
    digest = hashlib.sha256((tmp_path / "own.npz").read_bytes()).hexdigest()[:12]
    assert first == f"own data, 12 training and 6 test images, sha256 {digest}..."
    assert load(own(tmp_path, **changed("x_test", (0, 0, 0, 0), 7))).note != first


def test_a_class_that_only_training_shows_is_kept(tmp_path):
    data = load(own(tmp_path, y_test=np.zeros(6, int)))
    assert (data.classes, data.y_test.tolist()) == (3, [0] * 6)


def test_a_constant_channel_becomes_zero(tmp_path):
    x = np.stack([np.full(12, 0.1), np.arange(12)], axis=1)
    data = load(own(tmp_path, x_train=x, x_test=x[:6]))
    assert data.x_train[:, 0].abs().max() == 0
    assert data.x_test[:, 0].abs().max() == 0
    assert data.x_train[:, 1].std(correction=0) == pytest.approx(1)


def test_large_numbers_are_scaled_without_overflow(tmp_path):
    assert_a_scaled_task(load(own(tmp_path, x_train=GOOD["x_train"] * 1e30, x_test=GOOD["x_test"] * 1e30)))


def test_an_own_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "own.npz"
    assert refusal(FileNotFoundError, str(path)) == f"{path}: no such file"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_test": None}, "no array y_test; expected x_train, y_train, x_test, y_test; found 'x_test', 'x_train', 'y_train'"),
        (dict.fromkeys(GOOD), "no array x_train, y_train, x_test, y_test; expected x_train, y_train, x_test, y_test; found none"),
        ({"x_train": np.array([{}] * 12)}, "x_train is not a plain array of numbers; pickled objects are never loaded (Object"),
        ({"y_train": np.array([None] * 12)}, "y_train is not a plain array of numbers; pickled objects are never loaded (Object"),
        (changed("x_train", (3, 1, 0, 2), np.nan), "x_train[3, 1, 0, 2] is nan; expected finite float32 numbers"),
        (changed("x_train", (0, 0, 4, 3), np.inf), "x_train[0, 0, 4, 3] is inf; expected finite"),
        (changed("x_test", (5, 1, 4, 3), -np.inf), "x_test[5, 1, 4, 3] is -inf; expected finite"),
        (changed("x_test", (2, 0, 1, 0), 1e300), "x_test[2, 0, 1, 0] is 1e+300; expected finite float32 numbers"),
        ({"x_train": np.full((12, 3), np.nan)}, "x_train[0, 0] is nan"),
        ({"x_train": np.array(["a"] * 12)}, "x_train has dtype <U1; expected real numbers"),
        ({"x_test": GOOD["x_test"] * 1j}, "x_test has dtype complex128; expected real numbers"),
        ({"x_train": np.ones(12)}, "x_train has shape (12,); expected (n, channels, height, width), (n, height, width) or (n, features)"),
        ({"x_train": np.ones((12, 1, 1, 2, 2))}, "x_train has shape (12, 1, 1, 2, 2); expected (n, channels"),
        ({"x_train": np.float64(1)}, "x_train has shape (); expected (n, channels"),
        ({"x_train": np.ones((0, 2, 5, 4)), "y_train": np.ones(0, int)}, "x_train is empty: its shape is (0, 2, 5, 4)"),
        ({"x_test": np.ones((6, 0))}, "x_test is empty: its shape is (6, 0)"),
        ({"x_test": np.ones((6, 2, 4, 5))}, "x_train and x_test differ in shape: (2, 5, 4) and (2, 4, 5) an image"),
        ({"y_train": np.arange(12) % 3 * 1.0}, "y_train has dtype float64; expected integer labels"),
        ({"y_train": np.arange(12) % 2 == 1}, "y_train has dtype bool; expected integer labels"),
        ({"y_test": np.array(["cat"] * 6)}, "y_test has dtype <U3; expected integer labels"),
        ({"y_train": np.arange(11) % 3}, "y_train has shape (11,); expected (12,), one label an image"),
        ({"y_test": np.eye(6, dtype=int)}, "y_test has shape (6, 6); expected (6,), one label an image"),
        (changed("y_train", (4,), -1), "y_train[4] is -1; expected labels 0, 1, ..., none negative"),
        (changed("y_test", (5,), -7), "y_test[5] is -7; expected labels 0, 1, ..., none negative"),
        ({"y_train": np.arange(12) % 2 * 2, "y_test": np.zeros(6, int)}, "y_train[1] is 2, out of range: 2 classes are labelled 0 to 1"),
        ({"y_train": np.arange(12) % 3 + 1}, "y_train[2] is 3, out of range: 3 classes are labelled 0 to 2"),
        (changed("y_train", (11,), 10**9), "y_train[11] is 1000000000, out of range: 4 classes are labelled 0 to 3"),
        ({"y_train": np.array([0, 1, 2**64 - 1] * 4, np.uint64)}, "y_train[2] is 18446744073709551615, out of range: 3 classes"),
        ({"y_train": np.zeros(12, int)}, "y_train shows one class only (0); expected at least 2"),
        (changed("y_test", (3,), 3), "y_test[3] is 3, a class that training never shows: it shows 0 to 2"),
        ({"y_test": np.full(6, 2**64 - 1, np.uint64)}, "y_test[0] is 18446744073709551615, a class that training never shows"),
    ],
)  # fmt: skip
def test_unusable_own_arrays_are_refused(tmp_path, changes, said):
    file = own(tmp_path, **changes)
    message = refusal(ValueError, file)
    assert message.startswith(f"{file}: {said}")


def one_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


@pytest.mark.parametrize("blob", [b"", b"hello", one_array(), b"\x80\x04K\x01."], ids=["empty", "text", "npy", "pickle"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, blob):
    path = tmp_path / "own.npz"
    path.write_bytes(blob)
    said = "not an .npz archive; write one with numpy.savez and the arrays x_train, y_train, x_test, y_test"
    assert refusal(ValueError, str(path)) == f"{path}: {said}"


@pytest.mark.parametrize("keep", [4, 50, 1000, -30])
def test_half_an_own_file_is_refused(tmp_path, keep):
    path = Path(own(tmp_path))
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(ValueError, str(path)) == f"{path}: a damaged .npz archive (File is not a zip file)"


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (b"no array at all", "has dtype |S15; expected real numbers"),
        (one_array()[:-1], "is not a plain array of numbers; pickled objects are never loaded (EOF"),
        (one_array().replace(b"(3,)", b"(9999999999999999,)"), "is not a plain array of numbers; pickled objects are never loaded ("),
    ],
    ids=["text", "half", "enormous"],
)
def test_a_damaged_own_array_is_named(tmp_path, member, said):
    path = Path(own(tmp_path, x_test=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_test.npy", member)
    assert refusal(ValueError, str(path)).startswith(f"{path}: x_test {said}")


# ------------------------------------------------------------------------------------------------------------- the published files


@needs_data
@pytest.mark.parametrize(
    ("name", "image", "mean", "std"), [("mnist", (1, 28, 28), 0.1307, 0.3081), ("fashion-mnist", (1, 28, 28), 0.2860, 0.3530)]
)
def test_the_real_idx_files_give_the_published_statistics(name, image, mean, std):
    data = load(name, root=DATA)
    assert_a_scaled_task(data)
    assert data.x_train.shape == (60_000, *image)
    assert data.x_test.shape == (10_000, *image)
    assert data.note == ""
    black, white = data.x_train.min().item(), data.x_train.max().item()
    assert (1 / (white - black), -black / (white - black)) == pytest.approx((std, mean), abs=1e-4)


@needs_data
def test_the_real_cifar10_has_a_verified_partial_test_set():
    assert "(1,000 of 10,000 images); --partial-test" in refusal(ValueError, "cifar10", root=DATA)
    data = load("cifar10", root=DATA, partial_test=True, train_samples=1000)
    assert_a_scaled_task(data)
    assert data.y_train.bincount().tolist() == [100] * 10
    assert data.x_test.shape == (1000, 3, 32, 32)
    assert data.note.startswith("official test set, first 1,000 of 10,000 images (verified by SHA-256); stratified subset of 1,000")


def test_every_published_checksum_has_its_full_length():
    for collection in (published.MNIST, published.FASHION_MNIST, published.CIFAR10):
        for file in collection.files:
            assert isinstance(file, Published)
            assert file.digest is not None
            assert len(file.digest) == hashlib.new(file.algorithm).digest_size * 2
