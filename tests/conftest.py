import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the networks are so small that threads cost more than they do, the more so beside other work


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


MODELS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
"""


def _write_data(path: Path) -> None:
    draw = np.random.default_rng(0)
    y = np.arange(75) % 3
    x = (3 * np.eye(6)[y] + draw.normal(size=(75, 6)) / 2).astype(np.float32)
    np.savez(path, x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])


@pytest.fixture(scope="session")
def write_data() -> Callable[[Path], None]:
    """Vectors of six features in three classes, which are easy to tell apart: 45 to train, 30 to test."""
    return _write_data


@pytest.fixture(scope="session")
def write_models() -> Callable[[Path], None]:
    """Networks for those data: Net, and Normed with batch normalisation."""
    return lambda path: path.write_text(MODELS) and None


@pytest.fixture
def data_file(tmp_path: Path, write_data: Callable[[Path], None]) -> Path:
    write_data(tmp_path / "my.npz")
    return tmp_path / "my.npz"


@pytest.fixture
def model_file(tmp_path: Path, write_models: Callable[[Path], None]) -> Path:
    write_models(tmp_path / "my.py")
    return tmp_path / "my.py"
