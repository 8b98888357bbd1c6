"""Files that are whole or not there, and that notice every changed byte."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_BLANK = b"0" * 64
_DIGEST = re.compile(rb'\\"sha256\\":\\"([0-9a-f]{64})\\"')  # the quotes are escaped: it is JSON in JSON
_HEADER_LIMIT = 100 << 20  # bytes; what safetensors itself accepts
_LEFTOVER = re.compile(r"\..+\.(\d+|[0-9a-f]{8})\.tmp")  # of a process, or of a report


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, a crash or a full disk finds the old one or the new one, never a part.

    Raises:
        OSError: with the name of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed writers left behind in this folder, not in those below. Only for a folder no one else writes to."""
    for leftover in folder.glob(".*.tmp"):
        if _LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values to one safetensors file, atomically, with its own checksum.

    The file is an ordinary safetensors file: tensors under names, the structure and the rest as JSON in its metadata, beside the SHA-256
    of the whole file (with the place of the digest itself zeroed), so that one changed byte anywhere is noticed. Equal trees give equal
    files.
    """
    tensors: dict[str, Tensor] = {}
    content = {"sha256": _BLANK.decode(), "tree": _pack(tree, tensors)}
    packed = json.dumps(content, separators=(",", ":"))
    raw = safetensors.torch.save(tensors, {"galvanic": packed})  # one entry: safetensors orders several by chance
    write_atomic(path, raw.replace(_BLANK, hashlib.sha256(raw).hexdigest().encode(), 1))


def read_tree(path: Path) -> Any:
    """What `write_tree` wrote; nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, truncated, or not of this kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    raw = path.read_bytes()
    header = raw[8 : 8 + min(int.from_bytes(raw[:8], "little"), _HEADER_LIMIT)]
    found = _DIGEST.search(header)
    if found is None:
        raise ValueError(f"{path}: not a galvanic checkpoint, or damaged in its header")
    start = 8 + found.start(1)
    digest = hashlib.sha256(raw[:start] + _BLANK + raw[start + 64 :]).hexdigest().encode()
    if digest != found[1]:
        raise ValueError(f"{path}: damaged (its SHA-256 is {digest[:12].decode()}..., it says {found[1][:12].decode()}...)")
    try:
        structure = json.loads(json.loads(header)["__metadata__"]["galvanic"])["tree"]
        return _unpack(structure, safetensors.torch.load(raw))
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a galvanic checkpoint ({error})") from None


def _pack(x: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON in which tensors are references, tuples and dicts with other keys than text are marked."""
    if isinstance(x, Tensor):
        name = f"{len(tensors)}"
        tensors[name] = x.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(x, dict):
        return {"$map": [[_pack(k, tensors), _pack(v, tensors)] for k, v in x.items()]}
    if isinstance(x, tuple):
        return {"$tuple": [_pack(e, tensors) for e in x]}
    if isinstance(x, list):
        return [_pack(e, tensors) for e in x]
    if x is None or isinstance(x, str | bool | int | float):
        return x
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(x).__name__}")


def _unpack(x: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(x, list):
        return [_unpack(e, tensors) for e in x]
    if not isinstance(x, dict):
        return x
    ((mark, value),) = x.items()
    if mark == "$tensor":
        return tensors[value]
    if mark == "$tuple":
        return tuple(_unpack(e, tensors) for e in value)
    if mark != "$map":
        raise ValueError(f"unknown mark {mark!r}")
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value}


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however it ends.

    Raises:
        RuntimeError: another process holds it, with its number.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    with path.open("a+b", buffering=0) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().decode().strip() or "?"
            raise RuntimeError(f"{folder} is in use by process {holder}; wait for it, or choose another --out") from None
        try:
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n".encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield


def rng_state() -> dict[str, Any]:
    """The state of torch's global random streams on every device."""
    devices = [torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue torch's global random streams from a state of `rng_state`."""
    torch.set_rng_state(state["cpu"])
    for i, s in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(s, i)
