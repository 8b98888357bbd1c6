"""Training: steps, recipes, runs that resume."""

from galvanic.train.fit import Budget, Fit, deploy
from galvanic.train.recipes import RECIPES, Recipe, Training, clip_weights
from galvanic.train.steps import NonFinite, Step, backprop, cross_entropy, steps

__all__ = [
    "RECIPES",
    "Budget",
    "Fit",
    "NonFinite",
    "Recipe",
    "Step",
    "Training",
    "backprop",
    "clip_weights",
    "cross_entropy",
    "deploy",
    "steps",
]
