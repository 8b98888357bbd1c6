"""Training: steps, recipes, runs that resume."""

from galvanic.train.fit import Budget, Fit, deploy
from galvanic.train.injection import ParametricNoise
from galvanic.train.lsq import LSQ, QuantisedTraining, StraightThrough
from galvanic.train.objectives import Total
from galvanic.train.recipes import MAIN, RECIPES, Blocks, Recipe, Training, ablations, clip_weights
from galvanic.train.robustness import JS, KL, MSE, Distillation, Divergence, HalfBatch
from galvanic.train.rounding import AdaRound, LeastSquares, MinMax, Rounding, weight_bits
from galvanic.train.schedules import Constant, Cosine, Fluctuation, Grid, Ramp, Schedule
from galvanic.train.sharpness import SharpnessAware
from galvanic.train.steps import NonFinite, Step, backprop, cross_entropy, steps
from galvanic.train.terms import (
    Alignment,
    ReadEnergy,
    SignalRange,
    Sparsity,
    Term,
    WeightPrecision,
    WeightRange,
    WriteRegularity,
)

__all__ = [
    "JS",
    "KL",
    "LSQ",
    "MAIN",
    "MSE",
    "RECIPES",
    "AdaRound",
    "Alignment",
    "Blocks",
    "Budget",
    "Constant",
    "Cosine",
    "Distillation",
    "Divergence",
    "Fit",
    "Fluctuation",
    "Grid",
    "HalfBatch",
    "LeastSquares",
    "MinMax",
    "NonFinite",
    "ParametricNoise",
    "QuantisedTraining",
    "Ramp",
    "ReadEnergy",
    "Recipe",
    "Rounding",
    "Schedule",
    "SharpnessAware",
    "SignalRange",
    "Sparsity",
    "Step",
    "StraightThrough",
    "Term",
    "Total",
    "Training",
    "WeightPrecision",
    "WeightRange",
    "WriteRegularity",
    "ablations",
    "backprop",
    "clip_weights",
    "cross_entropy",
    "deploy",
    "steps",
    "weight_bits",
]
