"""`torch.export` and ONNX: a network leaves Python with its chip, and with its noise."""

import warnings

import pytest
import torch
from torch import nn

from galvanic import convert, load_profile, profile_names, reads

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def network():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


@pytest.fixture(params=profile_names())
def placed(request, place):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    return place(network().double().eval(), load_profile(request.param), x), x


def seeded(run, x):
    torch.manual_seed(1)
    return run(x)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_network_comes_back_from_a_file_with_its_chip_and_its_noise(placed, strict, tmp_path):
    model, x = placed
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (x,), strict=strict), tmp_path / "m.pt2")
        run = torch.export.load(tmp_path / "m.pt2").module()
        torch.testing.assert_close(seeded(run, x), seeded(model, x), rtol=1e-10, atol=1e-10)


def test_noise_is_new_at_every_read_of_an_exported_network_and_absent_where_reads_were_off(place):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 4, 4)
    model = place(network().eval(), load_profile("reram"), x)
    with torch.no_grad():
        noisy = torch.export.export(model, (x,)).module()
        with reads(model, "off"):
            quiet = torch.export.export(model, (x,)).module()
        assert not torch.equal(noisy(x), noisy(x))
        assert torch.equal(quiet(x), quiet(x))


# -- ONNX -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime():
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"torch.onnx.export(dynamo=True) needs {package}")
    return pytest.importorskip("onnxruntime", reason="runs the exported file")


def exported(model, x, path):
    """The kinds of its nodes, functions included, after writing it to a file."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(path)
    proto = program.model_proto
    return {node.op_type for graph in (proto.graph, *proto.functions) for node in graph.node}


def session(runtime, path):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    run = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda x: torch.from_numpy(run.run(None, {name: x.numpy()})[0])


def test_the_ideal_network_computes_the_same_in_onnxruntime(runtime, tmp_path):
    torch.manual_seed(0)
    model, x = convert(network().eval(), load_profile("ideal"), chip=3), torch.randn(4, 1, 4, 4)
    kinds = exported(model, x, tmp_path / "m.onnx")
    assert not any("Random" in kind for kind in kinds)
    torch.testing.assert_close(session(runtime, tmp_path / "m.onnx")(x), model(x).detach(), rtol=1e-5, atol=1e-6)


READS = [
    name
    for name in profile_names()
    if any(e.per == "read" for e in (*load_profile(name).input, *load_profile(name).weight, *load_profile(name).output))
]


@pytest.mark.parametrize("name", READS)
def test_the_noisy_layer_is_noisy_in_onnxruntime_with_the_mean_and_spread_of_eager(name, place, runtime, tmp_path):
    """One vector 4,000 times is 4,000 reads. An error of more than 5 standard errors is seen once in a million."""
    torch.manual_seed(0)
    x = torch.randn(1, 5)
    model = place(nn.Linear(5, 3), load_profile(name), x)
    x = x.expand(4000, 5).contiguous()
    kinds = exported(model, x, tmp_path / "m.onnx")
    assert kinds & {"RandomNormal", "RandomNormalLike"}
    there, here = session(runtime, tmp_path / "m.onnx")(x), model(x).detach()

    def moments(y):
        """Mean and variance of every output, and the variances of these two estimates."""
        d = (y - y.mean(0)).square()
        return torch.stack([y.mean(0), y.var(0)]), torch.stack([y.var(0), d.var(0)]) / len(y)

    assert (there.std(0) > 0).any()
    (found, found_error), (expected, expected_error) = moments(there.double()), moments(here.double())
    rounding = 1e-9 + 4 * torch.finfo(torch.float32).eps * expected.abs()
    assert ((found - expected).abs() <= 5 * (found_error + expected_error).sqrt() + rounding).all()
