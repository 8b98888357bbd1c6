import contextlib
import hashlib
import json
import math
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from galvanic.storage import lock, read_tree, rng_state, set_rng_state, sweep, write_atomic, write_json, write_tree


def same(a, b) -> bool:
    """Equal to the bit, types included."""
    if isinstance(a, torch.Tensor):
        return type(b) is torch.Tensor and (a.dtype, a.shape) == (b.dtype, b.shape) and bits(a) == bits(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(type(k) is type(j) and same(a[k], b[j]) for k, j in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return struct.pack("d", a) == struct.pack("d", b) if isinstance(a, float) else a == b


def bits(x: torch.Tensor) -> bytes:
    return bytes(x.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) if x.numel() else b""


def round_trip(path: Path, tree):
    write_tree(path, tree)
    return read_tree(path)


def refusal(path: Path) -> str:
    """What `read_tree` says of a file that it refuses: one line that names it."""
    with pytest.raises(ValueError, match=r"\.safetensors: ") as caught:
        read_tree(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 500
    return message


# ------------------------------------------------------------------------------------------------------------------- round trips

TENSORS = {
    "float32": torch.tensor([1.0, -0.0, math.nan, math.inf, 1e-45]),
    "float64": torch.tensor([[0.1, 1e308], [5e-324, -math.inf]], dtype=torch.float64),
    "bfloat16": torch.tensor([0.1, -3.0], dtype=torch.bfloat16),
    "float16": torch.tensor([0.1, 65504.0], dtype=torch.float16),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "int32": torch.tensor([-(2**31)], dtype=torch.int32),
    "uint8": torch.arange(256, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.empty(0),
    "empty with a shape": torch.empty(3, 0, 2, dtype=torch.int64),
    "0-d": torch.tensor(2.5),
    "0-d bool": torch.tensor(True),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "expanded": torch.arange(3.0).expand(4, 3),
    "part of a larger one": torch.arange(100.0)[10:20:3],
    "holds a digest": torch.tensor(list(b'\\"sha256\\":\\"' + b"0" * 64 + b'\\"'), dtype=torch.uint8),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_to_the_bit(tmp_path, name):
    assert same(TENSORS[name], round_trip(tmp_path / "x.safetensors", TENSORS[name]))


TREES = {
    "nested": {"a": [1, (2.5, [None, True]), {"b": {}}], "c": (), "d": []},
    "keys that are not text": {0: "int", -7: 1, None: 2, True: 3, (1, "a"): 4, 1.5: 5, "0": 6},
    "floats": [0.1, -0.0, 1e-323, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 1 / 3, 1.0],
    "large int": [2**70, -(2**70), 0],
    "texts": ["", "é", "\x00\n\t", "\ud800", "\u2028", "$tensor", '"sha256":"' + "0" * 64 + '"', '\\"sha256\\":\\"' + "f" * 64 + '\\"'],
    "its own marks as keys": {"$tensor": "0", "$tuple": [1], "$map": [[1, 2]], "sha256": "0" * 64, "tree": 1},
    "tensors inside": {"x": (torch.ones(2), [torch.zeros(1)]), 3: torch.tensor(1)},
    "nothing": None,
    "empty": {},
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back_with_its_types(tmp_path, name):
    assert same(TREES[name], round_trip(tmp_path / "x.safetensors", TREES[name]))


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(TENSORS.values())[:8])
keys = st.text(max_size=4) | st.integers() | st.booleans() | st.none()


def branches(children):
    return st.lists(children, max_size=3) | st.dictionaries(keys, children, max_size=3) | st.lists(children, max_size=3).map(tuple)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.recursive(leaves, branches, max_leaves=12))
def test_any_tree_comes_back(tmp_path, monkeypatch, tree):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    assert same(tree, round_trip(tmp_path / "x.safetensors", tree))


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW([{"params": p[:1], "weight_decay": 0.1}, {"params": p[1:], "weight_decay": 0.0}], lr=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_with_the_same_bits(tmp_path, name):
    def begin():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, OPTIMIZERS[name](list(model.parameters()))

    def closure(model, optimizer):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    model, optimizer = begin()
    optimizer.step(lambda: closure(model, optimizer))
    saved = round_trip(tmp_path / "x.safetensors", {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()})
    assert same(optimizer.state_dict(), saved["optimizer"])
    other, other_optimizer = begin()
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    for m, o in ((model, optimizer), (other, other_optimizer)):
        o.step(lambda m=m, o=o: closure(m, o))
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_a_parameter_and_an_ordered_dict_come_back_as_plain_ones(tmp_path):
    back = round_trip(tmp_path / "x.safetensors", OrderedDict(w=nn.Parameter(torch.ones(2))))
    assert type(back) is dict
    assert type(back["w"]) is torch.Tensor


@pytest.mark.parametrize("value", [{1, 2}, 1j, object(), b"bytes", Path("x")], ids=lambda v: type(v).__name__)
def test_what_is_no_plain_value_is_refused_and_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "x.safetensors"
    write_tree(path, "old")
    with pytest.raises(TypeError, match=f"plain values, not {type(value).__name__}"):
        write_tree(path, {"a": [value]})
    assert read_tree(path) == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_equal_trees_give_equal_files_in_every_process(tmp_path):
    """safetensors orders its metadata by a hash that is seeded anew in every process."""
    script = (
        "import sys, torch; from pathlib import Path; from galvanic.storage import write_tree\n"
        "for name in sys.argv[1:]: write_tree(Path(name), {'a': torch.arange(5.0), 'b': [torch.ones(2, dtype=torch.int64), {'c': 1}]})"
    )
    names = [str(tmp_path / f"{i}.safetensors") for i in range(20)]
    subprocess.run([sys.executable, "-c", script, *names], check=True)
    write_tree(tmp_path / "here.safetensors", {"a": torch.arange(5.0), "b": [torch.ones(2, dtype=torch.int64), {"c": 1}]})
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_random_streams_go_on_from_a_checkpoint(tmp_path):
    torch.manual_seed(5)
    torch.randn(3)
    saved = round_trip(tmp_path / "x.safetensors", rng_state())
    first = torch.randn(7)
    set_rng_state(saved)
    assert torch.equal(first, torch.randn(7))


def test_json_that_is_not_finite_is_refused_and_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", {"a": value})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


# ------------------------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A small checkpoint with whitespace in its header, which JSON does not care for."""
    path = tmp_path_factory.mktemp("whole") / "x.safetensors"
    note = "two words"
    while True:  # until the header is padded
        write_tree(path, {"step": 3, "rows": [{"loss": 0.5, "note": note}], "w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)})
        raw = path.read_bytes()
        if raw[8 : 8 + int.from_bytes(raw[:8], "little")].endswith(b"  "):
            return raw
        note += "."


def test_every_changed_byte_is_refused(tmp_path, whole):
    path = tmp_path / "x.safetensors"
    blanks = b" \t\n\r"
    for place, byte in enumerate(whole):
        others = {byte ^ 1, byte ^ 0x80, (byte + 1) % 256, *(b" \t\n" if byte in blanks else b"0")} - {byte}
        assert len(others) >= 3 or byte in b"01"
        for other in others:
            path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            refusal(path)


def test_every_truncation_and_every_surplus_is_refused(tmp_path, whole):
    path = tmp_path / "x.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refusal(path)
    for surplus in (b"\x00", b" ", whole):
        path.write_bytes(whole + surplus)
        refusal(path)


def test_two_changes_that_could_cancel_are_refused(tmp_path, whole):
    path = tmp_path / "x.safetensors"
    draw = random.Random(0)
    for _ in range(300):
        a, b = draw.sample(range(len(whole)), 2)
        raw = bytearray(whole)
        raw[a], raw[b] = raw[b], raw[a]
        if raw != whole:
            path.write_bytes(raw)
            refusal(path)


def sealed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file whose digest is right, by someone who knows the format: `DIGEST` in the header is where it goes."""
    header = header.replace(b"DIGEST", b"0" * 64, 1)
    raw = (len(header) if length is None else length).to_bytes(8, "little") + header + data
    return raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode(), 1)


def header(tree: str = "1", tensors: str = "") -> bytes:
    inner = '{"sha256":"DIGEST","tree":' + tree + "}"
    return ('{"__metadata__":{"galvanic":' + json.dumps(inner) + "}" + tensors + "}").encode()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


HOSTILE = {
    "empty file": b"",
    "one byte": b"{",
    "zeros": bytes(1000),
    "garbage": random.Random(0).randbytes(5000),
    "text": b"not a checkpoint\n" * 10,
    "pickle": pickle.dumps(Bomb()),
    "torch pickle": b"PK\x03\x04" + pickle.dumps(Bomb()),
    "length 2^63": sealed(header(), length=2**63),
    "length 2^64 - 1": sealed(header(), length=2**64 - 1),
    "length 0": sealed(header(), length=0),
    "length one short": sealed(header(), length=len(sealed(header())) - 9),
    "deep nesting in the tree": sealed(header("[" * 100_000 + "]" * 100_000)),
    "deep nesting in the header": sealed(header(tensors=',"a":' + "[" * 100_000 + "]" * 100_000)),
    "deep nesting of marks": sealed(header('{"$tuple":[' * 3000 + "]}" * 3000)),
    "huge shape": sealed(header('{"$tensor":"a"}', ',"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}')),
    "shape that overflows": sealed(
        header('{"$tensor":"a"}', ',"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}')
    ),
    "data beyond the end": sealed(header('{"$tensor":"a"}', ',"a":{"dtype":"U8","shape":[1000000],"data_offsets":[0,1000000]}'), b"x"),
    "negative shape": sealed(header('{"$tensor":"a"}', ',"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}'), b"x"),
    "overlapping tensors": sealed(
        header("1", ',"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}'), b"xyz"
    ),
    "unknown dtype": sealed(header("1", ',"a":{"dtype":"PY","shape":[1],"data_offsets":[0,1]}'), b"x"),
    "tensor that is not there": sealed(header('{"$tensor":"nosuch"}')),
    "tensor named by a list": sealed(header('{"$tensor":[]}')),
    "tensor named by a number": sealed(header('{"$tensor":7}')),
    "two marks": sealed(header('{"$tuple":[],"$map":[]}')),
    "no mark": sealed(header("{}")),
    "unknown mark": sealed(header('{"$eval":[["a","b"]]}')),
    "map of numbers": sealed(header('{"$map":[1,2]}')),
    "map that is a number": sealed(header('{"$map":7}')),
    "key that is a list": sealed(header('{"$map":[[[1],2]]}')),
    "tuple of a number": sealed(header('{"$tuple":7}')),
    "tree that is no JSON": sealed(header("nonsense")),
    "number of a million digits": sealed(header("9" * 1_000_000)),
    "no tree": sealed(b'{"__metadata__":{"galvanic":"{\\"sha256\\":\\"DIGEST\\"}"}}'),
    "digest outside of the metadata": sealed(b'{"a":"\\"sha256\\":\\"DIGEST\\""}'),
    "metadata that is a list": sealed(b'{"__metadata__":["\\"sha256\\":\\"DIGEST\\""]}'),
    "header that is a list": sealed(b'["\\"sha256\\":\\"DIGEST\\""]'),
    "header that is not UTF-8": sealed(b'{"\xff":"\\"sha256\\":\\"DIGEST\\""}'),
}


def test_the_hostile_files_begin_from_a_file_that_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(sealed(header('{"$tensor":"a"}', ',"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}'), b"xyz"))
    assert read_tree(path).tolist() == list(b"xyz")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_at_once_and_executes_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.safetensors"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    begun = time.monotonic()
    try:
        refusal(path)
        assert time.monotonic() - begun < 1
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert os.listdir(tmp_path) == [path.name]


def test_what_is_not_there_or_no_file_is_said_to_be_missing(tmp_path):
    for path in (tmp_path / "nosuch.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint {path}"):
            read_tree(path)


# ------------------------------------------------------------------------------------------------------------------- kills and locks

FORKS = """
import os, sys, time
from pathlib import Path
import torch
from galvanic.storage import lock, read_tree, write_tree

def write(path):
    k = read_tree(path)["k"]
    while True:
        k += 1
        write_tree(path, {"k": k, "x": torch.full((5000,), float(k))})

def hold(folder):
    with lock(folder):
        (folder / "held").touch()
        time.sleep(60)

for line in sys.stdin:
    action, path = line.rstrip("\\n").split(" ", 1)
    child = os.fork()
    if child == 0:
        globals()[action](Path(path))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


class Children:
    """Processes that need no two seconds to import torch."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, action: str, path: Path) -> int:
        self.process.stdin.write(f"{action} {path}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill(self, child: int) -> None:
        os.kill(child, signal.SIGKILL)
        assert self.process.stdout.readline() == "over\n"


@pytest.fixture(scope="module")
def children():
    found = Children()
    yield found
    found.process.stdin.close()
    found.process.wait(10)
    found.process.stdout.close()


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path, children):
    path = tmp_path / "x.safetensors"
    write_tree(path, {"k": 0, "x": torch.zeros(5000)})
    draw, seen, leftovers = random.Random(0), [0], 0
    for _ in range(25):
        child = children.start("write", path)
        before = path.stat().st_mtime_ns
        wait_until(lambda before=before: path.stat().st_mtime_ns > before)
        time.sleep(draw.uniform(0, 0.03))
        children.kill(child)
        tree = read_tree(path)
        assert tree["x"].unique().tolist() == [tree["k"]]
        seen.append(tree["k"])
        leftovers += len(os.listdir(tmp_path)) - 1
        sweep(tmp_path)
        assert os.listdir(tmp_path) == [path.name]
    assert sorted(set(seen)) == seen  # never an older one than before
    assert leftovers > 0  # else no kill fell into a write


def test_a_locked_folder_refuses_a_second_process_and_names_the_first(tmp_path, children):
    folder = tmp_path / "run"
    child = children.start("hold", folder)
    wait_until((folder / "held").exists)
    with pytest.raises(RuntimeError, match=rf"in use by process {child}; wait for it") as caught, lock(folder):
        pass
    assert "\n" not in str(caught.value)
    children.kill(child)
    with lock(folder):  # free again, though no one tidied up
        assert (folder / "run.lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(RuntimeError, match=f"process {os.getpid()};"), lock(folder):
            pass
    with lock(folder):
        pass


def test_a_lock_is_free_after_an_error_inside(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        pass


# ------------------------------------------------------------------------------------------------------------------- full disks


@contextlib.contextmanager
def file_size_limit(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_refused_for_space(path: Path, tree) -> None:
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"No space left|File too large") as caught:
        write_tree(path, tree)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [name for name in os.listdir(path.parent) if name.endswith(".tmp")] == []


def test_a_write_that_does_not_fit_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tree(path, {"k": 0})
    for share in range(20):
        with file_size_limit(share * 2000):
            assert_refused_for_space(path, {"x": torch.ones(10_000)})
    write_tree(path, {"k": 1})
    assert read_tree(path) == {"k": 1}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(small_disk):
    path, filler = small_disk / "x.safetensors", small_disk / "filler"
    tree = {"x": torch.ones(50_000)}  # 200 kB
    write_tree(path, tree)
    for left in range(0, 190_000, 9_500):
        filler.unlink(missing_ok=True)
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write_bytes(bytes(free - left))
        assert_refused_for_space(path, tree)
    filler.unlink()
    write_tree(path, {"k": 1})
    assert read_tree(path) == {"k": 1}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as caught:
        write_atomic(tmp_path / "file" / "x", b"")
    assert caught.value.filename


# ------------------------------------------------------------------------------------------------------------------- sweep


def test_sweep_removes_leftovers_of_writers_and_nothing_else(tmp_path):
    kept = ["rows.jsonl", ".notes.tmp", "x.tmp", ".hidden", ".a.b.tmp", ".x.12g.tmp"]
    for name in [*kept, ".rows.jsonl.123.tmp", ".report.html.0a1b2c3d.tmp"]:
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".rows.jsonl.123.tmp").touch()  # perhaps the run of someone else
    (tmp_path / ".folder.123.tmp").mkdir()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "below", ".folder.123.tmp"])
    assert os.listdir(tmp_path / "below") == [".rows.jsonl.123.tmp"]
    sweep(tmp_path / "nosuch")
