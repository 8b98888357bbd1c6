"""Non-idealities as data: frozen dataclasses with a `draw` and a differentiable `apply`."""

from galvanic.physics.base import Additive, Conditions, Context, Nonideality, Per
from galvanic.physics.converters import Quantize, Saturate
from galvanic.physics.curves import Curve, InversePower, LogLaw, Piecewise, Polynomial
from galvanic.physics.encoding import DifferentialPair, Direct, Encoding
from galvanic.physics.faults import StuckAt
from galvanic.physics.memory import Drift, Programming, ReadNoise
from galvanic.physics.mismatch import AreaMismatch, LogNormalMismatch, Mismatch
from galvanic.physics.noise import Gaussian, Shot, Thermal
from galvanic.physics.nonlinearity import Nonlinearity
from galvanic.physics.product import Circuit, Kirchhoff, Product
from galvanic.physics.value import Scalar, Value

__all__ = [
    "Additive",
    "AreaMismatch",
    "Circuit",
    "Conditions",
    "Context",
    "Curve",
    "DifferentialPair",
    "Direct",
    "Drift",
    "Encoding",
    "Gaussian",
    "InversePower",
    "Kirchhoff",
    "LogLaw",
    "LogNormalMismatch",
    "Mismatch",
    "Nonideality",
    "Nonlinearity",
    "Per",
    "Piecewise",
    "Polynomial",
    "Product",
    "Programming",
    "Quantize",
    "ReadNoise",
    "Saturate",
    "Scalar",
    "Shot",
    "StuckAt",
    "Thermal",
    "Value",
]
