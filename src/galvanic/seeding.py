"""Random numbers that depend on names, not on the order of calls."""

import hashlib
import json

import numpy as np
import torch

_WORDS = 624  # of the Mersenne twister behind torch's CPU generator
_FIRST = 3  # 64-bit fields before them: seed, (left, seeded), next


def generator(*names: str | int | float | None) -> torch.Generator:
    """A CPU generator that belongs to these names: ``generator(7, "fc1", "write", 0)`` is the same one every time.

    The names are hashed to 256 bits, which fill the whole state of the generator. `torch.Generator.manual_seed` would keep 32 of
    them, so that among 100,000 named streams about one pair would coincide.

    >>> a = torch.randn(3, generator=generator(7, "fc1", "write", 0))
    >>> b = torch.randn(3, generator=generator(7, "fc1", "write", 0))
    >>> bool((a == b).all())
    True
    """
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    words = np.random.SeedSequence(int.from_bytes(digest)).generate_state(_WORDS, np.uint32)
    words[0] |= 0x80000000  # a twister must not be all zero
    result = torch.Generator().manual_seed(0)
    state = result.get_state()
    state.view(torch.int64)[_FIRST : _FIRST + _WORDS] = torch.from_numpy(words.astype(np.int64))
    result.set_state(state)
    return result


def seed(*names: str | int) -> int:
    """A 63-bit integer that belongs to these names, for `torch.manual_seed`."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8]) >> 1


def seed_rank(number: int) -> None:
    """Seed the global stream of this process with `number` and its rank: the processes of a distributed training draw different noise.

    After the same `torch.manual_seed` on every rank, all of them would draw the same. Weights that are drawn afterwards differ, too, until
    the wrapper that shares them has copied those of the first rank; a numbered chip is the same on all of them.
    """
    rank = torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    torch.manual_seed(seed("rank", number, rank))
