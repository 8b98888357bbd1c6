from math import sqrt

import pytest
import torch

import galvanic.physics as physics
from galvanic.physics import BitSliced, DifferentialPair, Direct, Encoding, Kirchhoff, OffsetColumn, Parallel
from galvanic.seeding import generator

ENCODINGS = [
    Direct(),
    DifferentialPair(),
    DifferentialPair(g_min=0.05),
    DifferentialPair(g_min=0.9),
    OffsetColumn(),
    OffsetColumn(g_min=0.1),
    Parallel(of=DifferentialPair(g_min=0.05), count=3),
    Parallel(of=OffsetColumn(), count=2),
    BitSliced(bits=2, slices=8),
    BitSliced(of=OffsetColumn(), bits=4, slices=4),
    BitSliced(of=Parallel(of=DifferentialPair(g_min=0.1), count=2), bits=8, slices=2),
]
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)

W = torch.cat([torch.linspace(-1, 1, 1001, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]).view(2, 3, 167)


def test_every_encoding_of_the_library_stands_in_this_table():
    public = {x for name in physics.__all__ if isinstance(x := getattr(physics, name), type) and issubclass(x, Encoding)}
    assert public - {Encoding} == set(map(type, ENCODINGS))


@every_encoding
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_decoding_undoes_encoding(encoding, dtype):
    w = W.to(dtype)
    g = encoding.encode(w)
    blocks, columns, rows = w.shape
    assert (g.shape, g.dtype) == ((encoding.devices, blocks, columns + encoding.extra_columns, rows), dtype)
    room = 4 * torch.finfo(dtype).eps / (1 - getattr(encoding, "g_min", 0.1))  # a few roundings of conductances near 1
    sliced = 2.0**-16 if isinstance(encoding, BitSliced) else 0.0  # half a step of the 16 bits in the table
    torch.testing.assert_close(encoding.decode(g), w, rtol=0, atol=room + sliced)


@every_encoding
def test_conductances_lie_between_the_smallest_and_the_largest_and_one_of_a_pair_is_at_the_smallest(encoding):
    g = encoding.encode(W)
    assert g.abs().max() <= 1 + 1e-15
    if encoding.nonnegative:
        assert g.min() >= getattr(encoding, "g_min", 0.0)
    if isinstance(encoding, DifferentialPair):
        torch.testing.assert_close(g.amin(0), torch.full_like(W, encoding.g_min), rtol=0, atol=1e-15)


@every_encoding
def test_the_gradient_through_the_code_is_one_everywhere_at_weight_zero_too(encoding):
    w = W.clone().requires_grad_()
    g = encoding.encode(w)
    if encoding.nonnegative:
        g = g.clamp(min=0)  # as a layer does
    (gradient,) = torch.autograd.grad(encoding.decode(g).sum(), w)
    torch.testing.assert_close(gradient, torch.ones_like(w), rtol=1e-12, atol=0)


@every_encoding
def test_the_variance_of_a_decoded_weight_is_that_of_many_samples(encoding):
    n = 100_000
    w = torch.linspace(-1, 1, 4, dtype=torch.float64).view(1, 2, 2)
    g = encoding.encode(w)
    std = torch.rand(g.shape, dtype=torch.float64, generator=generator("std"))
    noise = std * torch.randn(n, *std.shape, dtype=torch.float64, generator=generator("noise"))
    for k, variance in enumerate(encoding.lane_variances(std.square())):
        sampled = torch.vmap(lambda g, k=k: encoding.lanes(g)[k])(g + noise).var(0)
        torch.testing.assert_close(variance, sampled, rtol=5 * sqrt(2 / n), atol=0)  # five standard errors


def test_slices_hold_the_digits_of_the_magnitude():
    w = torch.tensor([[[0b1011_0110 / 255, -0b0000_1001 / 255]]])
    slices = BitSliced(bits=2, slices=4).lanes(BitSliced(bits=2, slices=4).encode(w))
    torch.testing.assert_close(torch.stack(slices).squeeze() * 3, torch.tensor([[2.0, 0], [3, 0], [1, -2], [2, -1]]))


def test_more_bits_than_a_weight_has_are_refused():
    with pytest.raises(ValueError, match="8 bits x 4 slices are more than the 24"):
        BitSliced(bits=8, slices=4)


def test_ideal_wires_multiply_by_what_was_written():
    assert Kirchhoff().matrices(W) == (W,)


@pytest.mark.parametrize("g_min", [-0.1, 1.0, float("nan"), "0.1"])
def test_a_pair_without_room_between_its_conductances_is_refused(g_min):
    with pytest.raises(ValueError, match=r"DifferentialPair.g_min = "):
        DifferentialPair(g_min=g_min)
