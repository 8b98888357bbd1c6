"""Several processes: the weights agree, the chip is its number everywhere, and noise is each one's own."""

from importlib import import_module

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from galvanic import reads

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
ranks = import_module("ranks")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """What every process of two found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.play, (folder,), nprocs=ranks.WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks.WORLD)]


@pytest.fixture
def scene(played):
    def of(name):
        for rank, found in enumerate(played):
            if isinstance(found[name], str):
                pytest.fail(f"rank {rank}: {found[name]}")
        return [found[name] for found in played]

    return of


def alone(profile):
    """The weights after the same training in one process, on the whole batch."""
    model, x, y = ranks.network(profile)
    with reads(model, "off"):
        ranks.train(model, model, x, y)
    return ranks.weights(model)


def test_weights_stay_the_same_in_every_process_though_each_has_its_own_noise(scene):
    first, second = scene("replicated with noise")
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert not torch.equal(first["noise"], second["noise"])


def test_a_numbered_chip_is_the_same_in_every_process_bit_for_bit(scene):
    first, second = scene("replicated with noise")
    assert torch.equal(first["outputs"], second["outputs"])


@pytest.mark.parametrize("profile", ranks.PROFILES)
def test_replicated_training_without_noise_gives_the_weights_of_one_process(scene, profile):
    for found in scene(f"replicated {profile}"):
        torch.testing.assert_close(found["weights"], alone(profile), rtol=1e-9, atol=1e-11)


def test_the_noise_of_a_seeded_process_is_its_own_and_reproducible(scene):
    first, second = scene("noise")
    assert torch.equal(*first)
    assert torch.equal(*second)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("profile", ranks.PROFILES)
def test_sharded_training_without_noise_gives_the_weights_of_one_process(scene, profile):
    for found in scene(f"sharded {profile}"):
        torch.testing.assert_close(found, alone(profile), rtol=1e-9, atol=1e-11)
