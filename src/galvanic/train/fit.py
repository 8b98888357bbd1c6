"""One training run that may be killed at any moment and ends with the same bits."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from galvanic.nn import (
    AdaptiveNoise,
    Analog,
    age,
    analog_layers,
    anchor,
    at,
    calibrate_ranges,
    convert,
    fluctuate,
    learned_noise,
    simulate,
    stochastic,
)
from galvanic.physics import Conditions, Value
from galvanic.profile import Profile
from galvanic.seeding import generator, seed
from galvanic.storage import read_tree, rng_state, set_rng_state, write_tree
from galvanic.train.injection import noise_coefficients
from galvanic.train.lsq import QuantisedTraining
from galvanic.train.objectives import Total
from galvanic.train.recipes import Recipe, clip_weights
from galvanic.train.rounding import weight_bits
from galvanic.train.steps import NonFinite, backprop, cross_entropy, steps
from galvanic.train.terms import Term, WeightPrecision


@dataclass(frozen=True, kw_only=True)
class Budget(Value):
    """What every recipe may spend.

    Args:
        epochs: passes over the training set.
        batch: most images a step.
        learning_rate: of AdamW at the start; it falls to zero on a cosine.
        weight_decay: of AdamW, on weights of two or more dimensions.
        calibration: images from which converter ranges are set.
    """

    epochs: Annotated[int, Ge(1)] = 60
    batch: Annotated[int, Ge(1)] = 64
    learning_rate: Annotated[float, Gt(0)] = 3e-3
    weight_decay: Annotated[float, Ge(0)] = 1e-3
    calibration: Annotated[int, Ge(1)] = 256


@dataclass
class _Run:
    """The state of a training run between two steps: all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    teacher: nn.Module | None = None
    step: int = 0
    loss_sum: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A training run: what it trains, on what, and where it keeps its checkpoint.

    Args:
        build: makes the digital network, from torch's global stream.
        profile: the hardware.
        recipe: how.
        images: (n, ...), the training inputs.
        labels: (n,).
        budget: what it may spend.
        number: the seed: of the weights, the order of the images and the noise.
        augmentation: what each batch of images goes through; None: nothing.
        path: of the checkpoint.
        checkpoint_every_s: seconds between two checkpoints.

    Raises:
        ValueError: the recipe rounds weights, in training or after it, and the hardware does not quantise them.
    """

    build: Callable[[], nn.Module]
    profile: Profile
    recipe: Recipe
    images: Tensor
    labels: Tensor
    budget: Budget
    number: int
    path: Path
    checkpoint_every_s: float = 2.0
    augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        self._quantised()  # refuses hardware without levels now, not at the switch
        if self.recipe.rounding is not None and weight_bits(self.profile) is None:
            raise ValueError(f"recipe {self.recipe.name!r} rounds weights; profile {self.profile.name!r} does not quantise them")

    def check(self) -> None:
        """Refuse now, before any work, a network that the recipe cannot prepare.

        Raises:
            ValueError: it has no residual blocks to swap, or no layers to disturb.
        """
        try:
            self._network()
        except ValueError as error:
            raise ValueError(f"recipe {self.recipe.name!r}: {error}") from error

    @property
    def epoch_steps(self) -> int:
        return math.ceil(len(self.images) / self.budget.batch)

    @property
    def total(self) -> int:
        return self.epoch_steps * self.budget.epochs

    @property
    def switch(self) -> int:
        """The step from which it trains on chips."""
        share = self.recipe.training.hardware_from
        return self.total if share is None else round(share * self.total)

    def run(self) -> Iterator[dict[str, Any]]:
        """Train to the end, from the checkpoint if there is one; yields a row after every epoch (those before the checkpoint first).

        Raises:
            NonFinite: the last checkpoint is left as it was.
            ValueError: the checkpoint is damaged.
        """
        run = self._resume() if self.path.exists() else self._start()
        yield from run.rows
        while run.step < self.total:
            if run.step == self.switch:
                self._onto_hardware(run)
            try:
                yield from self._segment(run, self.switch if run.step < self.switch else self.total)
            except NonFinite as error:
                raise NonFinite(f"recipe {self.recipe.name!r}, seed {self.number}, {error}") from error
            self._checkpoint(run)

    def result(self) -> nn.Module:
        """The trained network, as the finished run left it: digital, or analog on an anonymous chip."""
        run = self._resume()
        if run.step < self.total:
            raise ValueError(f"{self.path}: this training run is at step {run.step} of {self.total}")
        for part in (self._quantised() if run.step > self.switch else None, self.recipe.training.injection):
            if part is not None:
                part.bake(run.model)
        return run.model.eval()

    def _start(self) -> _Run:
        model = self._network()
        torch.manual_seed(seed("training", self.number))
        return _Run(model, self._optimizer(model))

    def _network(self) -> nn.Module:
        """The network as training begins."""
        torch.manual_seed(seed("network", self.number))
        model, training = self.build(), self.recipe.training
        if training.blocks is not None:
            model = stochastic(model, self.profile if training.blocks.noise else None, gate=training.blocks.gate)
        if training.injection is not None:
            training.injection.prepare(model)
        return model

    def _onto_hardware(self, run: _Run) -> None:
        if self.recipe.training.distillation is not None:
            run.teacher = run.model
        run.model = calibrate_ranges(self._convert(run.model), self.images[: self.budget.calibration].split(self.budget.batch))
        run.optimizer = self._optimizer(run.model)

    def _convert(self, model: nn.Module) -> nn.Module:
        quantised = self._quantised()
        if quantised is not None:
            model = copy.deepcopy(model)  # the teacher stays as it is
            quantised.prepare(model)
        model = convert(model, self.recipe.adapt(self.profile), chip=None)
        blocks = self.recipe.training.blocks
        return model if blocks is None else simulate(model, blocks.on_chips)

    def _quantised(self) -> QuantisedTraining | None:
        """The rounding of weights in training, with the bits and scales of the hardware."""
        quantised = self.recipe.training.quantised
        if quantised is None:
            return None
        bits = weight_bits(self.profile)
        if bits is None:
            raise ValueError(f"recipe {self.recipe.name!r} trains quantised weights; profile {self.profile.name!r} does not quantise them")
        return replace(quantised, bits=bits, weight_scale=self.profile.weight_scale)

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        decayed = [p for p in model.parameters() if p.ndim > 1]
        free = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.budget.weight_decay}, {"params": free, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.budget.learning_rate)

    def _segment(self, run: _Run, end: int) -> Iterator[dict[str, Any]]:
        """Steps up to `end`, on one kind of model."""
        self._mode(run)
        saved = time.monotonic()
        self._schedule(run)
        total, logs = self._objective(run), list[dict[str, Tensor]]()

        def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = total(model, batch)
            logs.append(total.logs)
            return loss

        gradient = self.recipe.training.sharpness or backprop
        for step in steps(run.model, self._batches(run.step, end), objective, run.optimizer, gradient=gradient, first=run.step):
            if run.step >= self.switch and self.recipe.training.clip_sigmas is not None:
                clip_weights(run.model, self.recipe.training.clip_sigmas)
            run.step += 1
            run.loss_sum += float(step.loss)
            self._sum_terms(run, logs[0])  # sharpness-aware steps have a second pass, elsewhere
            logs.clear()
            self._schedule(run)  # before the checkpoint: it may draw numbers
            if run.step % self.epoch_steps == 0:
                yield self._close_epoch(run)
            if time.monotonic() - saved >= self.checkpoint_every_s:
                self._checkpoint(run)
                saved = time.monotonic()

    def _mode(self, run: _Run) -> None:
        run.model.train()
        if run.step >= self.switch and self.recipe.training.frozen_statistics:
            for module in run.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _objective(self, run: _Run) -> Total:
        """The loss of these steps: terms and teacher come with the chips."""
        training = self.recipe.training
        if run.step < self.switch:
            return Total(task=partial(self._task, run))
        return Total(
            task=partial(self._task, run),
            hardware=tuple(self._for_hardware(term) for term in training.hardware),
            robustness=training.robustness,
            distillation=training.distillation,
            teacher=run.teacher,
        )

    def _for_hardware(self, term: Term) -> Term:
        """The term, with the bits of the hardware where it counts in bits and the hardware has levels."""
        bits = weight_bits(self.profile) if isinstance(term, WeightPrecision) else None
        return term if bits is None else replace(term, bits=bits)  # type: ignore[call-arg]

    def _task(self, run: _Run, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy, on a chip of random age and level where the recipe says so, and what anchors learned noise."""
        training = self.recipe.training
        if any(isinstance(m, Analog) for m in model.modules()):
            if training.oldest_s:
                age(model, training.age_s(float(torch.rand(()))))
            self._vary(model, len(batch[0]), self._spent(run.step))
        loss = cross_entropy(model, batch)
        simulated = training.blocks is not None and any(isinstance(m, AdaptiveNoise) and m.simulated for m in model.modules())
        return loss + training.blocks.anchor * anchor(model) if simulated and training.blocks is not None else loss

    def _vary(self, model: nn.Module, n: int, progress: float) -> None:
        """Draw the noise level of a step, and of each of its n examples, where it is not the mean."""
        fluctuation = self.recipe.training.fluctuation
        if fluctuation is not None and fluctuation.per == "example":
            fluctuate(model, fluctuation.draw(n))
        spread = self.recipe.training.noise_spread(progress)
        if spread or (fluctuation is not None and fluctuation.per == "step"):
            level = abs(self.recipe.training.noise_level(progress) + spread * float(torch.randn(())))
            if fluctuation is not None and fluctuation.per == "step":
                level *= float(fluctuation.draw(1))
            at(model, replace(next(iter(analog_layers(model).values())).conditions, noise_level=level))

    def _sum_terms(self, run: _Run, logs: dict[str, Tensor]) -> None:
        """Add up the loss's terms of an epoch, where it has any but the task."""
        if len(logs) > 2:  # the task and the total
            for name, value in logs.items():
                run.terms[name] = run.terms.get(name, 0.0) + float(value)

    def _close_epoch(self, run: _Run) -> dict[str, Any]:
        level = self.recipe.training.noise_level(self._spent(run.step - 1))
        row: dict[str, Any] = {"epoch": run.step // self.epoch_steps, "loss": run.loss_sum / self.epoch_steps, "noise_level": level}
        if (learned := learned_noise(run.model)) is not None:
            row["learned_noise"] = learned
        if coefficients := noise_coefficients(run.model):
            row["noise_coefficient"] = sum(coefficients.values()) / len(coefficients)
        if run.terms:
            on_chips = min(self.epoch_steps, run.step - self.switch)  # those before have no terms
            row["terms"] = {name: value / on_chips for name, value in run.terms.items()}
        run.loss_sum, run.terms, run.rows = 0.0, {}, (*run.rows, row)
        return row

    def _schedule(self, run: _Run) -> None:
        """Learning rate and noise level of the next step."""
        for group in run.optimizer.param_groups:
            group["lr"] = self.budget.learning_rate * (1 + math.cos(math.pi * run.step / self.total)) / 2
        level = self.recipe.training.noise_level(self._spent(run.step))
        if any(isinstance(m, Analog) and m.conditions.noise_level != level for m in run.model.modules()):
            at(run.model, replace(next(iter(analog_layers(run.model).values())).conditions, noise_level=level))

    def _spent(self, step: int) -> float:
        """The share of all steps before this one; on chips no less than `hardware_from`, which may lie between two steps."""
        share = self.recipe.training.hardware_from
        return step / self.total if share is None or step < self.switch else max(share, step / self.total)

    def _batches(self, start: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of these steps; every epoch has an order of its own.

        They are of nearly equal size: a remainder of a single image has no batch statistics.
        """
        for epoch in range(start // self.epoch_steps, self.budget.epochs):
            order = torch.randperm(len(self.images), generator=generator("order", self.number, epoch))
            for step, chosen in enumerate(order.tensor_split(self.epoch_steps), start=epoch * self.epoch_steps):
                if start <= step < end:
                    images = self.images[chosen]
                    if self.augmentation is not None:
                        images = self.augmentation(images, generator("augment", self.number, step))
                    yield images, self.labels[chosen]

    def _checkpoint(self, run: _Run) -> None:
        tree = {
            "step": run.step,
            "loss_sum": run.loss_sum,
            "terms": run.terms,
            "teacher": None if run.teacher is None else dict(run.teacher.state_dict()),
            "rows": list(run.rows),
            "model": dict(run.model.state_dict()),
            "optimizer": run.optimizer.state_dict(),
            "rng": rng_state(),
        }
        write_tree(self.path, tree)

    def _resume(self) -> _Run:
        tree = read_tree(self.path)
        try:
            return self._restored(tree)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not a checkpoint of this training run: {' '.join(str(error).split())}") from error

    def _restored(self, tree: dict[str, Any]) -> _Run:
        model, teacher = self._network(), None
        if tree["teacher"] is not None:
            teacher = copy.deepcopy(model)
            teacher.load_state_dict(tree["teacher"])
        if tree["step"] > self.switch:
            model = self._convert(model)
        model.load_state_dict(tree["model"])
        optimizer = self._optimizer(model)
        optimizer.load_state_dict(tree["optimizer"])
        run = _Run(model, optimizer, teacher, tree["step"], tree["loss_sum"], tree["terms"], tuple(tree["rows"]))
        self._schedule(run)
        set_rng_state(tree["rng"])
        return run


def deploy(model: nn.Module, profile: Profile, recipe: Recipe, images: Tensor, budget: Budget, *, chip: int) -> nn.Module:
    """A trained network on a numbered chip: a digital one is converted and its ranges calibrated, an analog one keeps those it learned."""
    if not any(isinstance(m, Analog) for m in model.modules()):
        if recipe.rounding is not None:
            model = recipe.rounding.apply(model, profile, images[: budget.calibration].split(budget.batch))
        model = convert(model, recipe.adapt(profile), chip=chip).eval()
        calibrate_ranges(model, images[: budget.calibration].split(budget.batch))
    for layer in analog_layers(model).values():
        layer.place(replace(layer.chip, number=chip, write=0, snapshot=0), Conditions())
    return model
