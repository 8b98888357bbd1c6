"""Non-idealities as data: frozen dataclasses with a `draw` and a differentiable `apply`."""

from galvanic.physics.adc import SAR, Converter, Ramp
from galvanic.physics.base import Additive, Conditions, Context, Nonideality, Per
from galvanic.physics.cells import PolynomialCell, SinhCell
from galvanic.physics.circuit import NonlinearCrossbar
from galvanic.physics.coding import BitSerial, InputCoding, SignSplit, Whole
from galvanic.physics.converters import Compress, Quantize, Saturate
from galvanic.physics.correlated import Correlated
from galvanic.physics.crosstalk import Crosstalk
from galvanic.physics.curves import Curve, Exponential, InversePower, LogLaw, Piecewise, Polynomial, SaturatingExponential
from galvanic.physics.encoding import BitSliced, DifferentialPair, Direct, Encoding, OffsetColumn, Parallel
from galvanic.physics.environment import Activated, SupplyCoefficient, TemperatureCoefficient
from galvanic.physics.faults import StuckAt
from galvanic.physics.lines import DeadLine, GainOffset
from galvanic.physics.memory import Drift, Programming, ReadNoise
from galvanic.physics.mismatch import AreaMismatch, LogNormalMismatch, Mismatch
from galvanic.physics.noise import Gaussian, Shot, Thermal
from galvanic.physics.nonlinearity import Nonlinearity
from galvanic.physics.product import Circuit, Kirchhoff, Product
from galvanic.physics.relaxation import Relaxation
from galvanic.physics.schedule import TimeVarying
from galvanic.physics.telegraph import RandomTelegraph
from galvanic.physics.value import Scalar, Value
from galvanic.physics.verify import WriteVerify
from galvanic.physics.wires import WireResistance, WireResistanceApproximate, Wires

__all__ = [
    "SAR",
    "Activated",
    "Additive",
    "AreaMismatch",
    "BitSerial",
    "BitSliced",
    "Circuit",
    "Compress",
    "Conditions",
    "Context",
    "Converter",
    "Correlated",
    "Crosstalk",
    "Curve",
    "DeadLine",
    "DifferentialPair",
    "Direct",
    "Drift",
    "Encoding",
    "Exponential",
    "GainOffset",
    "Gaussian",
    "InputCoding",
    "InversePower",
    "Kirchhoff",
    "LogLaw",
    "LogNormalMismatch",
    "Mismatch",
    "Nonideality",
    "NonlinearCrossbar",
    "Nonlinearity",
    "OffsetColumn",
    "Parallel",
    "Per",
    "Piecewise",
    "Polynomial",
    "PolynomialCell",
    "Product",
    "Programming",
    "Quantize",
    "Ramp",
    "RandomTelegraph",
    "ReadNoise",
    "Relaxation",
    "Saturate",
    "SaturatingExponential",
    "Scalar",
    "Shot",
    "SignSplit",
    "SinhCell",
    "StuckAt",
    "SupplyCoefficient",
    "TemperatureCoefficient",
    "Thermal",
    "TimeVarying",
    "Value",
    "Whole",
    "WireResistance",
    "WireResistanceApproximate",
    "Wires",
    "WriteVerify",
]
