"""The cells of a study: trainings, and trained networks on chips."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galvanic.nn import calibrate_ranges, convert, program, resnet, to_digital
from galvanic.profile import Profile, profile_from_dict
from galvanic.seeding import seed
from galvanic.studies.augment import Crop, Flip, augment
from galvanic.studies.conditions import Condition
from galvanic.studies.datasets import Dataset
from galvanic.studies.metrics import expected_calibration_error, nll, top_k
from galvanic.studies.protocol import STUDIES, Study
from galvanic.studies.sensitivity import sensitivity
from galvanic.studies.sharpness import ascent_direction, loss_along, random_direction, top_eigenvalue
from galvanic.train import Budget, Fit, Recipe, cross_entropy, deploy

Row = dict[str, Any]
_AT_ONCE = 100_000  # numbers of the input; the signals of larger batches leave the cache
_MAP_CHIPS = 5
_RADII = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)
_SHARPNESS_IMAGES = 512


@dataclass(frozen=True)
class StudyCell:
    """A piece of a study that is computed and written whole.

    Args:
        name: of its file.
        effort: about how long it takes, in passes over the training set.
        kind: ``training``, ``chip`` or ``map``.
        arm: name of the recipe.
        number: the seed.
        chip: number of the chip.
    """

    name: str
    effort: float
    kind: str
    arm: str
    number: int
    chip: int = 0


@dataclass
class Trial:
    """What computes the cells of a study.

    Args:
        settings: the choices, a `StudySettings`.
        data: the data set they name.
        folder: where checkpoints are kept.
    """

    settings: Any
    data: Dataset
    folder: Path
    _latest: tuple[str, int, nn.Module | None] = field(default=("", 0, None), repr=False)

    @property
    def study(self) -> Study:
        return STUDIES[self.settings.study]

    @cached_property
    def profile(self) -> Profile:
        return profile_from_dict(self.settings.profile)

    @cached_property
    def conditions(self) -> list[Condition]:
        """Those of the study that these settings keep."""
        return [c for c in self.study.conditions if c.name in self.settings.conditions]

    def cells(self) -> list[StudyCell]:
        """Trainings first; then every trained network on every chip; then the maps."""
        s, cells = self.settings, []
        trainings: dict[str, str] = {}
        for arm in s.arms:
            trainings.setdefault(self._checkpoint_name(arm), arm)
        for arm in trainings.values():
            cells += [StudyCell(f"{arm}-seed{n}-training", s.epochs, "training", arm, n) for n in s.seeds]
        effort = len(self.conditions) * len(self.data.x_test) / len(self.data.x_train) / 3
        for arm in s.arms:
            cells += [StudyCell(f"{arm}-seed{n}-chip{c}", effort, "chip", arm, n, c) for n in s.seeds for c in s.chips]
        cells += [StudyCell(f"{arm}-map", effort * _MAP_CHIPS, "map", arm, s.seeds[0]) for arm in self.study.maps if arm in s.arms]
        return cells

    def rows(self, cell: StudyCell) -> Iterator[Row]:
        """Compute a cell."""
        kinds: dict[str, Callable[[StudyCell], Iterator[Row]]] = {"training": self._training, "chip": self._chip, "map": self._map}
        return kinds[cell.kind](cell)

    def build(self) -> nn.Module:
        """The digital network."""
        s = self.settings
        return resnet(tuple(s.stages), width=s.width, classes=self.data.classes, channels=self.data.x_train.shape[1])

    def fit(self, arm: str, number: int) -> Fit:
        """The training of an arm and seed; recipes that train alike share it."""
        s = self.settings
        return Fit(
            build=self.build,
            profile=self.profile,
            recipe=self._recipe(arm),
            images=self.data.x_train,
            labels=self.data.y_train,
            budget=self._budget,
            number=number,
            path=self.folder / "checkpoints" / f"{self._checkpoint_name(arm)}-seed{number}.safetensors",
            augmentation=(lambda images, generator: augment(images, (Crop(padding=s.crop), Flip()), generator)) if s.augment else None,
        )

    def _recipe(self, arm: str) -> Recipe:
        return self.study.arms[arm]

    def _checkpoint_name(self, arm: str) -> str:
        training = self._recipe(arm).training
        same = (name for name in self.settings.arms if self._recipe(name).training == training and training.hardware_from is None)
        return next(same, arm)

    @property
    def _budget(self) -> Budget:
        s = self.settings
        return Budget(**{name: getattr(s, name) for name in ("epochs", "batch", "learning_rate", "weight_decay", "calibration")})

    def _training(self, cell: StudyCell) -> Iterator[Row]:
        fit, who = self.fit(cell.arm, cell.number), {"arm": cell.arm, "seed": cell.number}
        for row in fit.run():
            yield {"kind": "training", **who, **row}
        digital = to_digital(fit.result()).eval()
        yield {"kind": "digital", **who, **self._measured(self._scores(digital))}

    def _chip(self, cell: StudyCell) -> Iterator[Row]:
        model = self._deployed(cell.arm, cell.number)
        torch.manual_seed(seed("study", cell.arm, cell.number, cell.chip))
        for condition in self.conditions:
            placed = condition.place(model, cell.chip, self._calibration)
            scores = condition.scores(placed, self.data.x_test, self._batch)
            who = {"arm": cell.arm, "seed": cell.number, "chip": cell.chip, "condition": condition.name}
            yield {"kind": "chip", **who, **self._measured(scores)}

    def _map(self, cell: StudyCell) -> Iterator[Row]:
        model = self._deployed(cell.arm, cell.number)
        torch.manual_seed(seed("study", cell.arm, cell.number, "map"))
        who = {"arm": cell.arm, "seed": cell.number}
        chips = self.settings.chips[:_MAP_CHIPS]
        yield from ({"kind": "sensitivity", **who, **row} for row in sensitivity(model, self._accuracy, chips=chips))
        digital = to_digital(model).eval()
        batch = self.data.x_train[:_SHARPNESS_IMAGES], self.data.y_train[:_SHARPNESS_IMAGES]
        found = top_eigenvalue(digital, [batch], cross_entropy)
        yield {"kind": "sharpness", **who, "eigenvalue": found.value, "converged": found.converged}
        for label, direction in (("random", random_direction(digital, 0)), ("ascent", ascent_direction(digital, [batch], cross_entropy))):
            for row in loss_along(digital, batch, cross_entropy, direction, _RADII):
                yield {"kind": "landscape", **who, "direction": label, **row}

    def _deployed(self, arm: str, number: int) -> nn.Module:
        """The trained network on the first chip; kept while its chips are measured one after the other."""
        if self._latest[:2] != (arm, number):
            fit = self.fit(arm, number)
            for _ in fit.run():  # at its end already, unless its checkpoint was lost
                pass
            placed = deploy(fit.result(), self.profile, fit.recipe, self.data.x_train, self._budget, chip=self.settings.chips[0])
            self._latest = arm, number, placed
        return self._latest[2]  # type: ignore[return-value]

    def check(self) -> None:
        """Refuse, before anything is computed, a network or hardware that does not fit."""
        if self.data.x_train.shape[2:] == (1, 1):
            raise ValueError(f"{self.settings.data}: a study takes images, not vectors")
        model = convert(self.build(), self.profile, chip=self.settings.chips[0])
        calibrate_ranges(model.eval(), [self.data.x_train[:2]])
        program(model, self.settings.chips[0])
        for arm in self.settings.arms:
            self.fit(arm, self.settings.seeds[0]).check()

    @property
    def _batch(self) -> int:
        return max(1, _AT_ONCE // self.data.x_test[0].numel())

    @cached_property
    def _calibration(self) -> list[Tensor]:
        images = self.data.x_train[: self.settings.calibration]
        return list(images.tensor_split(-(-len(images) // self.settings.batch)))  # nearly equal: one image has no batch statistics

    @torch.no_grad()
    def _scores(self, model: nn.Module) -> Tensor:
        return torch.cat([model(part) for part in self.data.x_test.split(self._batch)])

    def _accuracy(self, model: nn.Module) -> float:
        return top_k(self._scores(model), self.data.y_test)

    def _measured(self, scores: Tensor) -> Row:
        y = self.data.y_test
        top5 = {"top5": top_k(scores, y, 5)} if scores.shape[1] > 5 else {}
        return {
            "accuracy": top_k(scores, y),
            **top5,
            "nll": nll(scores, y),
            "ece": expected_calibration_error(scores, y),
            "n_test": len(y),
        }
