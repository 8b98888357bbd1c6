"""What a run is: every choice that its numbers depend on."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
from annotated_types import Ge, Gt, Len
from torch import nn

from galvanic.profile import Profile, load_profile, profile_from_dict, profile_to_dict
from galvanic.studies.datasets import Dataset, load
from galvanic.studies.networks import cnn
from galvanic.studies.user import load_builder
from galvanic.train import RECIPES, Budget, Recipe

DAY_S = 86400.0
FIRST_TEST_CHIP = 1000


def _known(recipe: str) -> str:
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe; known: {', '.join(RECIPES)}")
    return recipe


class Settings(pydantic.BaseModel):
    """The choices of one run, as kept in its `config.json`.

    Args:
        data: name of a data set, or path of an .npz file.
        root: folder of the published files.
        partial_test: whether an incomplete test set is accepted.
        train_samples: size of a stratified subset of the training set; None: all.
        model: 'cnn', or FILE.py:NAME of the user's.
        model_sha256: of that file.
        profile: the hardware, as nested dictionaries.
        recipes: names.
        seeds: of weights, order and noise.
        chips: numbers of the chips it is evaluated on; none of them takes part in training.
        ages_s: seconds after the write.
        noise_levels: in units of the profile's.
        epochs, batch, learning_rate, weight_decay: the budget of every recipe.
        calibration: images that set converter ranges and renew batch normalisation.
        threads: of torch; another number rounds differently.
    """

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    data: str = "digits"
    root: str | None = None
    partial_test: bool = False
    train_samples: Annotated[int, Ge(1)] | None = None
    model: str = "cnn"
    model_sha256: str | None = None
    profile: dict[str, Any]
    recipes: Annotated[list[Annotated[str, pydantic.AfterValidator(_known)]], Len(1)]
    seeds: Annotated[list[int], Len(1)]
    chips: Annotated[list[int], Len(1)]
    ages_s: Annotated[list[Annotated[float, Ge(0)]], Len(1)] = [0.0, 3600.0, DAY_S, 30 * DAY_S, 365 * DAY_S]
    noise_levels: list[Annotated[float, Ge(0)]] = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    epochs: Annotated[int, Ge(1)] = 60
    batch: Annotated[int, Ge(1)] = 64
    learning_rate: Annotated[float, Gt(0)] = 3e-3
    weight_decay: Annotated[float, Ge(0)] = 1e-3
    calibration: Annotated[int, Ge(1)] = 256
    threads: Annotated[int, Ge(1)]

    def budget(self) -> Budget:
        """What every recipe may spend."""
        return Budget(**{name: getattr(self, name) for name in ("epochs", "batch", "learning_rate", "weight_decay", "calibration")})

    def hardware(self) -> Profile:
        """The profile."""
        return profile_from_dict(self.profile)

    def recipe(self, name: str) -> Recipe:
        """The recipe of this name."""
        return RECIPES[name]

    def load_data(self) -> Dataset:
        """The data set, read and checked. Images of one pixel are feature vectors, (n, features), as they were in the user's file."""
        root = None if self.root is None else Path(self.root)
        data = load(self.data, root=root, partial_test=self.partial_test, train_samples=self.train_samples)
        if data.x_train.shape[2:] != (1, 1):
            return data
        return replace(data, x_train=data.x_train.flatten(1), x_test=data.x_test.flatten(1))

    def builder(self, data: Dataset) -> Callable[[], nn.Module]:
        """What makes the network for this data.

        Raises:
            ValueError: the user's file is another one than when the run began.
        """
        if self.model != "cnn":
            if self.model_sha256 != file_digest(self.model):
                raise ValueError(f"{self.model}: the file has changed since this run began; start a new run")
            return load_builder(self.model)
        channels, *size = data.x_train.shape[1:]
        if len(set(size)) != 1 or size[0] < 4:
            came = " x ".join(map(str, size)) if size else f"vectors of {channels} features"
            taken = "square images of 4 pixels or more"
            raise ValueError(f"the built-in network takes {taken}, not {came}; bring your own with --model FILE.py:NAME")
        return lambda: cnn(channels, size[0], data.classes)


def new_settings(**choices: Any) -> Settings:
    """Settings from plain choices; `profile` is a name or a file.

    Raises:
        ValueError: one line, naming the choice.
    """
    choices["profile"] = profile_to_dict(load_profile(choices["profile"]))
    if choices.get("model", "cnn") != "cnn":
        choices["model_sha256"] = file_digest(choices["model"])
    return parse_settings(choices)


def parse_settings(choices: dict[str, Any]) -> Settings:
    """Settings from their dictionary, checked."""
    try:
        return Settings(**choices)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        if fault["type"] == "missing":
            raise ValueError(f"{fault['loc'][0]} is missing") from None
        raise ValueError(f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg'].lower()}") from None


def file_digest(spec: str) -> str:
    """SHA-256 of the file in FILE.py:NAME."""
    path = Path(spec.rpartition(":")[0] or spec)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; a network of your own is given as FILE.py:NAME")
    return hashlib.sha256(path.read_bytes()).hexdigest()
