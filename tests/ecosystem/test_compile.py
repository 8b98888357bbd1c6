"""`torch.compile`: one graph without a break, the numbers of eager, and no new graph for a new chip, age or step.

In double precision: converters compute in one pass in eager and effect by effect in a graph, and differ by rounding.
"""

import shutil

import pytest
import torch
import torch._dynamo.config
import torch._inductor.config
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from galvanic import age, at, load_profile, program, reads
from galvanic.physics import Conditions


@pytest.fixture(autouse=True)
def no_graphs():
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=True):  # without it, torch refuses its own recurrent layers, and so classes below them
        yield


def compiled(model, backend="aot_eager"):
    return torch.compile(model, backend=backend, fullgraph=True)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def seeded(run, *inputs):
    torch.manual_seed(1)
    return run(*inputs)


CHANGES = {
    "chip": lambda model: program(model, 5),
    "write": lambda model: program(model, 5, write=2),
    "anonymous chip": lambda model: program(model, None),
    "age": lambda model: age(model, 3600.0),
    "snapshot": lambda model: age(model, 3600.0, snapshot=1),
    "conditions": lambda model: at(model, Conditions(age_s=60.0, noise_level=0.5, temperature_K=350.0)),
}


def test_one_graph_gives_the_numbers_and_gradients_of_eager_for_every_chip_age_noise_level_and_step(side_by_side):
    model, xs = side_by_side
    counter, optimizer = CompileCounterWithBackend("aot_eager"), torch.optim.SGD(model.parameters(), lr=1e-3)
    run, counts = compiled(model, counter), {}
    for change, make in {"nothing": lambda model: model, **CHANGES}.items():
        make(model)
        outputs = [seeded(run, *xs), seeded(model, *xs)]
        assert_close(*outputs)
        gradients = [torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in outputs]
        for graph, eager in zip(*gradients, strict=True):
            assert_close(graph, eager)
        for p, g in zip(model.parameters(), gradients[0], strict=True):
            p.grad = g
        optimizer.step()
        counts[change] = counter.frame_count
    assert counts == dict.fromkeys(counts, counts["nothing"])


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), torch.randn(4, 1, 4, 4)


def dense():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), torch.randn(4, 6)


def temporal():
    return nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2, padding=2), nn.ReLU(), nn.Conv1d(4, 2, 1, groups=2)), torch.randn(4, 2, 6)


def built(build, profile, place):
    torch.manual_seed(0)
    net, x = build()
    return place(net.double().eval(), profile, x.double()), x.double()


@pytest.mark.parametrize("mode", ["frozen", "off"])
@torch.no_grad()
def test_reads_that_hold_still_are_the_same_compiled(profile, place, mode):
    model, x = built(temporal, profile, place)
    with reads(model, mode):
        expected, run = model(x), compiled(model)
        assert_close(run(x), expected)
        assert_close(run(x), expected)


@torch.no_grad()
def test_a_draw_that_was_frozen_in_a_graph_is_the_one_that_eager_sees(place):
    model, x = built(temporal, load_profile("pcm"), place)
    with reads(model, "frozen"):
        drawn = compiled(model)(x)
        assert_close(model(x), drawn)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor's CPU backend compiles C++, and there is no g++")
@pytest.mark.parametrize(("build", "name"), [(convolutional, "pcm"), (dense, "hwa"), (temporal, "reram")])
@torch.no_grad()
def test_inductor_gives_the_numbers_of_eager_where_nothing_is_drawn(build, name, place):
    model, x = built(build, load_profile(name), place)
    with reads(model, "off"), torch._inductor.config.patch(compile_threads=1):
        assert_close(compiled(model, "inductor")(x), model(x))
