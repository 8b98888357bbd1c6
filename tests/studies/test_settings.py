import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from galvanic.profile import load_profile, profile_names
from galvanic.studies import settings as module
from galvanic.studies.datasets import load
from galvanic.studies.settings import FIRST_TEST_CHIP, Settings, new_settings, parse_settings
from galvanic.studies.survival import Survival
from galvanic.train import RECIPES, Budget

PLAIN = {"recipes": ["digital"], "seeds": [0], "chips": [FIRST_TEST_CHIP], "threads": 1}
draw = np.random.default_rng(0)


def made(**changes) -> Settings:
    return new_settings(**{"profile": "pcm", **PLAIN, **changes})


def npz(path, x: np.ndarray, classes: int = 2):
    y = np.arange(len(x)) % classes
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return str(path)


def refusal(kind: type[Exception] = ValueError, **changes) -> str:
    with pytest.raises(kind) as caught:
        made(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("profile", profile_names())
def test_settings_come_back_from_their_json_with_the_same_hardware(profile):
    one = made(profile=profile, train_samples=100, seeds=[3, 4])
    again = parse_settings(json.loads(json.dumps(one.model_dump(), allow_nan=False)))
    assert again == one
    assert again.hardware() == load_profile(profile)


def test_settings_hold_the_hardware_not_its_name(tmp_path):
    """A profile file that changes, or a library that is updated, does not change a run that began."""
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nrows = 7\n')
    one = made(profile=str(path))
    path.write_text('name = "mine"\nrows = 8\n')
    assert one.hardware().rows == 7


def test_budget_and_recipe_are_those_of_the_settings():
    one = made(epochs=3, batch=9, learning_rate=0.5, weight_decay=0.25, calibration=11)
    assert one.budget() == Budget(epochs=3, batch=9, learning_rate=0.5, weight_decay=0.25, calibration=11)
    assert [one.recipe(name) for name in RECIPES] == list(RECIPES.values())


def test_defaults_are_those_of_the_budget():
    assert made().budget() == Budget()


# ------------------------------------------------------------------------------------------------------------------- refusals

WRONG = [
    ("epochs", 0),
    ("epochs", -1),
    ("epochs", 1.5),
    ("epochs", True),
    ("epochs", "3"),
    ("epochs", None),
    ("batch", 0),
    ("learning_rate", 0.0),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("learning_rate", -1e308),
    ("weight_decay", -1e-9),
    ("calibration", 0),
    ("train_samples", 0),
    ("seeds", []),
    ("seeds", [0.5]),
    ("chips", []),
    ("chips", ["a"]),
    ("recipes", []),
    ("recipes", ["digitl"]),
    ("recipes", "digital"),
    ("ages_s", []),
    ("ages_s", [-1.0]),
    ("ages_s", [math.nan]),
    ("noise_levels", [-0.5]),
    ("threads", 0),
    ("data", 7),
    ("partial_test", "yes"),
    ("root", 7),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_choice_out_of_range_or_of_a_wrong_type_is_refused_by_name(name, value):
    assert refusal(**{name: value}).startswith(name)


def test_an_unknown_choice_is_refused():
    assert refusal(epoch=3).startswith("epoch")


def test_a_missing_choice_is_named_without_the_others():
    with pytest.raises(ValueError, match=r"^profile is missing$"):
        parse_settings(PLAIN)


def test_an_unknown_profile_is_refused_with_the_nearest():
    assert "did you mean 'pcm'" in refusal(profile="pcn")
    assert "no profile file nosuch.toml" in refusal(FileNotFoundError, profile="nosuch.toml")


def test_a_network_that_is_no_file_is_refused(tmp_path):
    assert refusal(FileNotFoundError, model="resnet18").endswith("a network of your own is given as FILE.py:NAME")
    assert "no file nosuch.py" in refusal(FileNotFoundError, model="nosuch.py:Net")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        made().epochs = 3


# ------------------------------------------------------------------------------------------------------------------- networks and data

MODEL = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))

def flattening():
    return nn.Sequential(nn.Flatten(), mlp())

def conv():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2))
"""


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(MODEL)
    return path


@pytest.mark.parametrize("name", ["mlp", "flattening"])
def test_feature_vectors_reach_a_network_of_ones_own_as_vectors(tmp_path, model_file, name):
    """The data set has them as images of one pixel; who gives (n, f) expects (n, f)."""
    one = made(data=npz(tmp_path / "x.npz", draw.normal(size=(12, 5))), model=f"{model_file}:{name}")
    data = one.load_data()
    assert (data.x_train.shape, data.x_test.shape) == ((12, 5), (12, 5))
    assert one.builder(data)()(data.x_train).shape == (12, 2)
    assert {row["where"] for row in Survival(one, data, tmp_path).placement()} == {"analog"}


def test_feature_vectors_are_scaled_feature_by_feature(tmp_path):
    x = draw.normal(size=(12, 5)) * [1, 10, 100, 1000, 1e4] + 3
    data = made(data=npz(tmp_path / "x.npz", x)).load_data()
    torch.testing.assert_close(data.x_train, torch.from_numpy((x - x.mean(0)) / x.std(0)).float(), atol=1e-5, rtol=1e-5)


def test_images_stay_images(tmp_path):
    for shape in ((12, 1, 3, 1), (12, 3, 4, 4), (12, 2, 1, 3)):
        assert made(data=npz(tmp_path / "x.npz", draw.normal(size=shape))).load_data().x_train.shape == shape


def test_the_built_in_network_takes_square_images_and_says_so(tmp_path):
    for shape, said in (((12, 5), "vectors of 5"), ((12, 1, 4, 5), "4 x 5"), ((12, 1, 3, 3), "3 x 3")):
        one = made(data=npz(tmp_path / "x.npz", draw.normal(size=shape)))
        with pytest.raises(
            ValueError, match=rf"the built-in network takes square images of 4 pixels or more.*{said}.*--model FILE\.py:NAME"
        ):
            one.builder(one.load_data())


@pytest.mark.parametrize("side", [4, 5, 7, 8, 9, 16, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_built_in_network_takes_any_square_image(tmp_path, channels, side):
    data = replace(load("digits", train_samples=20), x_train=torch.randn(4, channels, side, side), classes=7)
    model = made().builder(data)()
    assert model(data.x_train).shape == (4, 7)
    assert sum(p.numel() for p in model.parameters()) < 50_000


def test_the_built_in_network_is_drawn_from_the_global_stream():
    data = load("digits", train_samples=20)
    build = made().builder(data)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(build()[0].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_network_file_that_changed_is_refused(tmp_path, model_file):
    data = npz(tmp_path / "x.npz", draw.normal(size=(12, 5)))
    one = made(data=data, model=f"{model_file}:mlp")
    again = parse_settings(json.loads(json.dumps(one.model_dump())))
    assert isinstance(again.builder(again.load_data())(), nn.Module)
    model_file.write_text(MODEL.replace("8", "9"))
    with pytest.raises(ValueError, match=r"my\.py:mlp: the file has changed since this run began; start a new run"):
        again.builder(again.load_data())
    model_file.unlink()
    with pytest.raises(FileNotFoundError, match="no file"):
        again.builder(again.load_data())


def test_the_options_of_the_data_are_handed_on(monkeypatch):
    given = {}
    monkeypatch.setattr(module, "load", lambda name, **options: given.update(options, name=name) or load("digits", train_samples=20))
    made(data="mnist", root="/data", partial_test=True, train_samples=50).load_data()
    assert given.pop("root").as_posix() == "/data"
    assert given == {"name": "mnist", "partial_test": True, "train_samples": 50}
