"""The main job: how networks trained by several recipes survive on chips they have never seen, over time and noise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galvanic.nn import BatchNorm, Compensation, GlobalDrift, age, describe, evaluate, inspect, program, save, to_digital
from galvanic.physics import Conditions
from galvanic.seeding import seed
from galvanic.studies.datasets import Dataset
from galvanic.studies.settings import Settings
from galvanic.train import Fit, Training, deploy

Row = dict[str, Any]
_INSPECTED = 1000  # images
_EVALUATED_AT_ONCE = 100_000  # numbers of the input; the signals of larger batches leave the cache


@dataclass(frozen=True)
class Cell:
    """A piece of the study that is computed and written whole.

    Args:
        name: of its file.
        effort: about how long it takes, in passes over the training set.
        parts: computes it, yielding rows; a row may come long before the next.
    """

    name: str
    effort: float
    parts: Callable[[], Iterator[Row]]


@dataclass
class Survival:
    """The study of one run: its cells, in the order in which they are computed.

    Args:
        settings: what the run is.
        data: the data set they name.
        folder: where checkpoints and trained models are kept.
        checkpoint_every_s: seconds between two checkpoints of a training run.
    """

    settings: Settings
    data: Dataset
    folder: Path
    checkpoint_every_s: float = 2.0
    _latest: tuple[str, int, nn.Module | None] = field(default=("", 0, None), repr=False)

    def cells(self) -> list[Cell]:
        """Placement; then training, and evaluation chip by chip, for each recipe and seed."""
        s = self.settings
        chips_effort = (len(s.ages_s) * len(self.compensations) + len(s.noise_levels)) * len(self.data.x_test) / len(self.data.x_train) / 3
        cells = [Cell("placement", 0.1, self.placement)]
        for recipe in s.recipes:
            for number in s.seeds:
                cells.append(Cell(f"{recipe}-seed{number}-training", s.epochs, lambda r=recipe, n=number: self.training(r, n)))  # type: ignore[misc]
                for chip in s.chips:
                    name = f"{recipe}-seed{number}-chip{chip}"
                    cells.append(Cell(name, chips_effort, lambda r=recipe, n=number, c=chip: self.chip(r, n, c)))  # type: ignore[misc]
        return cells

    @cached_property
    def build(self) -> Callable[[], nn.Module]:
        """Makes the digital network."""
        return self.settings.builder(self.data)

    @cached_property
    def compensations(self) -> list[Compensation | None]:
        """None, drift compensation, and renewed batch statistics where the network has any."""
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in self.build().modules())
        return [None, GlobalDrift(), *([BatchNorm(self._calibration())] if norms else [])]

    def placement(self) -> Iterator[Row]:
        """Where each layer runs."""
        model = self._deploy_fresh()
        yield from ({"kind": "placement", **row} for row in describe(model))

    def _deploy_fresh(self) -> nn.Module:
        s = self.settings
        return deploy(self.build(), s.hardware(), s.recipe(s.recipes[0]), self.data.x_train, s.budget(), chip=s.chips[0])

    def fit(self, recipe: str, number: int) -> Fit:
        """The training run of a recipe and seed; recipes that train alike share it."""
        chosen = self.settings.recipe(recipe)
        name = "digital" if chosen.training == Training() else recipe
        return Fit(
            build=self.build,
            profile=self.settings.hardware(),
            recipe=chosen,
            images=self.data.x_train,
            labels=self.data.y_train,
            budget=self.settings.budget(),
            number=number,
            path=self.folder / "checkpoints" / f"{name}-seed{number}.safetensors",
            checkpoint_every_s=self.checkpoint_every_s,
        )

    def training(self, recipe: str, number: int) -> Iterator[Row]:
        """Loss over epochs, and the accuracy of the trained network without any hardware."""
        fit = self.fit(recipe, number)
        for row in fit.run():
            yield {"kind": "training", "recipe": recipe, "seed": number, **row}
        digital = to_digital(fit.result())
        yield {"kind": "digital", "recipe": recipe, "seed": number, "accuracy": self.accuracy(digital), "n_test": len(self.data.x_test)}
        save(self.folder / "models" / f"{recipe}-seed{number}.safetensors", self.deployed(recipe, number))

    def chip(self, recipe: str, number: int, chip: int) -> Iterator[Row]:
        """Accuracy over time and over noise on one chip, and what its layers do to the signal."""
        s = self.settings
        model = self.deployed(recipe, number)
        who = {"recipe": recipe, "seed": number, "chip": chip}
        torch.manual_seed(seed("evaluate", recipe, number, chip))  # reads are fresh, and the same after a resume
        for compensation in self.compensations:
            for row in evaluate(model, self.accuracy, chips=[chip], ages_s=s.ages_s, compensation=compensation):
                yield {"kind": "age", **who, "age_s": row["age_s"], "compensation": row["compensation"], **self._measured(row)}
        for level in s.noise_levels:
            for row in evaluate(model, self.accuracy, chips=[chip], conditions=Conditions(noise_level=level)):
                yield {"kind": "level", **who, "noise_level": level, **self._measured(row)}
        for age_s in (s.ages_s[0], s.ages_s[-1]):
            for row in inspect(age(program(model, chip), age_s), self.data.x_test[:_INSPECTED]):
                yield {"kind": "layer", **who, "age_s": age_s, **row}

    def _measured(self, row: Row) -> Row:
        return {"accuracy": row["value"], "n_test": len(self.data.x_test)}

    def deployed(self, recipe: str, number: int) -> nn.Module:
        """The trained network on the first of the chips it is evaluated on; kept while its chips are evaluated one after the other."""
        if self._latest[:2] != (recipe, number):
            fit, s = self.fit(recipe, number), self.settings
            for _ in fit.run():  # at its end already, unless its checkpoint was lost
                pass
            placed = deploy(fit.result(), s.hardware(), fit.recipe, self.data.x_train, s.budget(), chip=s.chips[0])
            self._latest = recipe, number, placed
        return self._latest[2]  # type: ignore[return-value]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of test images whose largest score is that of their label."""
        batch = max(1, _EVALUATED_AT_ONCE // self.data.x_test[0].numel())
        pairs = zip(self.data.x_test.split(batch), self.data.y_test.split(batch), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
        return right / len(self.data.x_test)

    def _calibration(self) -> list[Tensor]:
        budget = self.settings.budget()
        images = self.data.x_train[: budget.calibration]
        return list(images.tensor_split(-(-len(images) // budget.batch)))  # nearly equal: a remainder of one has no batch statistics
