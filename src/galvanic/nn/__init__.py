"""Models on chips: convert, program, age, calibrate, compensate, evaluate, describe, save."""

from galvanic.nn.adaptive import AdaptiveNoise, learned_noise, simulate
from galvanic.nn.analog import Analog
from galvanic.nn.attention import AnalogMultiheadAttention
from galvanic.nn.calibrate import calibrate_ranges
from galvanic.nn.chips import age, at, fluctuate, program, reads
from galvanic.nn.compensate import BatchNorm, ColumnDrift, Compensation, GlobalDrift, compensate
from galvanic.nn.convert import analog_layers, convert, describe, to_digital
from galvanic.nn.ensemble import ensemble
from galvanic.nn.evaluate import evaluate, inspect
from galvanic.nn.fused import unfused
from galvanic.nn.layers import (
    AnalogConv1d,
    AnalogConv2d,
    AnalogConv3d,
    AnalogConvTranspose1d,
    AnalogConvTranspose2d,
    AnalogConvTranspose3d,
    AnalogLinear,
)
from galvanic.nn.placed import Chip
from galvanic.nn.projection import Projection
from galvanic.nn.recurrent import AnalogGRU, AnalogGRUCell, AnalogLSTM, AnalogLSTMCell, AnalogRNN, AnalogRNNCell
from galvanic.nn.residual import AdditiveResidual, GatedResidual, ResidualBlock, anchor
from galvanic.nn.resnets import resnet, stochastic
from galvanic.nn.store import load, save

__all__ = [
    "AdaptiveNoise",
    "AdditiveResidual",
    "Analog",
    "AnalogConv1d",
    "AnalogConv2d",
    "AnalogConv3d",
    "AnalogConvTranspose1d",
    "AnalogConvTranspose2d",
    "AnalogConvTranspose3d",
    "AnalogGRU",
    "AnalogGRUCell",
    "AnalogLSTM",
    "AnalogLSTMCell",
    "AnalogLinear",
    "AnalogMultiheadAttention",
    "AnalogRNN",
    "AnalogRNNCell",
    "BatchNorm",
    "Chip",
    "ColumnDrift",
    "Compensation",
    "GatedResidual",
    "GlobalDrift",
    "Projection",
    "ResidualBlock",
    "age",
    "analog_layers",
    "anchor",
    "at",
    "calibrate_ranges",
    "compensate",
    "convert",
    "describe",
    "ensemble",
    "evaluate",
    "fluctuate",
    "inspect",
    "learned_noise",
    "load",
    "program",
    "reads",
    "resnet",
    "save",
    "simulate",
    "stochastic",
    "to_digital",
    "unfused",
]
