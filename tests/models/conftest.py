"""Networks of timm, torchvision and transformers, the smallest of their families, without pretrained weights."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from galvanic import Profile, calibrate_ranges, convert

os.environ["HF_HUB_OFFLINE"] = "1"  # every model here is made from a configuration: nothing may be fetched

try:
    import torchvision
except ModuleNotFoundError:
    pass
except RuntimeError:  # its compiled operators do not fit this build of torch, and it stumbles over two that it does not find
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"its models are tried where {name} is installed: pip install 'galvanic[models]'")


def image(size: int) -> Tensor:
    return torch.randn(2, 3, size, size)


def words() -> Tensor:
    return torch.randint(3, 50, (2, 7))


def from_timm(name: str, size: int = 32, **how: Any) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    return lambda: (library("timm").create_model(name, num_classes=5, **how), {"x": image(size)})


def mixer() -> tuple[nn.Module, dict[str, Tensor]]:
    models = library("timm").models
    return models.mlp_mixer.MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=64, num_classes=5), {"x": image(32)}


def vision_transformer() -> tuple[nn.Module, dict[str, Tensor]]:
    return library("torchvision").models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5), {"x": image(32)}


def from_torchvision(name: str, *args: Any, size: int = 32) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    return lambda: (getattr(library("torchvision").models, name)(*args, num_classes=5), {"x": image(size)})


TEXT = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def from_transformers(model: str, config: str, inputs: Callable[[], dict[str, Tensor]], **how: Any) -> Callable[[], Any]:
    def build() -> tuple[nn.Module, dict[str, Tensor]]:
        transformers = library("transformers")
        return getattr(transformers, model)(getattr(transformers, config)(**how)), inputs()

    return build


def text() -> dict[str, Tensor]:
    return {"input_ids": words()}


SWIN = {"img_size": 64, "size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}

# name in docs/models.md -> (the digital network, its inputs by name, the first of which it also takes without); another is another line
NETWORKS: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    "ResNet": from_timm("resnet18"),
    "RegNet": from_timm("regnety_002"),
    "DenseNet": from_timm("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)),
    "MobileNetV3": from_timm("mobilenetv3_small_050"),
    "EfficientNet": from_timm("efficientnet_b0"),
    "EfficientNetV2, ported": from_timm("tf_efficientnetv2_b0"),
    "NF-RegNet": from_timm("nf_regnet_b0"),
    "ConvNeXt": from_timm("convnext_atto"),
    "ViT": from_timm("vit_tiny_patch16_224", img_size=32, depth=2),
    "DeiT": from_timm("deit_tiny_distilled_patch16_224", img_size=32, depth=2),
    "XCiT": from_timm("xcit_nano_12_p16_224", img_size=32, depth=2),
    "Swin": from_timm("swin_tiny_patch4_window7_224", **SWIN),
    "Swin V2": from_timm("swinv2_tiny_window8_256", **SWIN),
    "BEiT": from_timm("beit_base_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3),
    "MLP-Mixer": mixer,
    "MobileNetV3 of torchvision": from_torchvision("mobilenet_v3_small"),
    "ViT of torchvision": vision_transformer,
    "Swin of torchvision": from_torchvision("SwinTransformer", [4, 4], 24, [1, 1], [2, 4], [4, 4]),
    "BERT": from_transformers(
        "BertForSequenceClassification", "BertConfig", lambda: text() | {"attention_mask": torch.ones(2, 7).long()}, **TEXT, **WIDTH
    ),
    "DistilBERT": from_transformers(
        "DistilBertForSequenceClassification", "DistilBertConfig", text, **TEXT, dim=32, n_layers=2, n_heads=2, hidden_dim=64
    ),
    "GPT-2": from_transformers("GPT2LMHeadModel", "GPT2Config", text, **TEXT, n_embd=32, n_layer=2, n_head=2),
    "Llama": from_transformers("LlamaForCausalLM", "LlamaConfig", text, **TEXT, **WIDTH),
    "Mixtral": from_transformers("MixtralForCausalLM", "MixtralConfig", text, **TEXT, **WIDTH, num_key_value_heads=2, num_local_experts=4),
    "Mamba": from_transformers("MambaForCausalLM", "MambaConfig", text, **TEXT, hidden_size=32, num_hidden_layers=2, state_size=8),
    "T5": from_transformers(
        "T5ForConditionalGeneration",
        "T5Config",
        lambda: text() | {"decoder_input_ids": words()},
        **TEXT | {"decoder_start_token_id": 0, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    ),
    "Whisper": from_transformers(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        lambda: {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": words()},
        **TEXT | {"decoder_start_token_id": 1, "d_model": 32, "num_mel_bins": 8, "max_source_positions": 20},
        **{f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in {"layers": 2, "attention_heads": 2, "ffn_dim": 64}.items()},
    ),
    "wav2vec 2.0": from_transformers(
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        lambda: {"input_values": torch.randn(2, 400)},
        **WIDTH | {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "feat_extract_norm": "layer", "mask_time_prob": 0.0},
        **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    ),
    "ViT of transformers": from_transformers(
        "ViTForImageClassification", "ViTConfig", lambda: {"pixel_values": image(32)}, **WIDTH, image_size=32, patch_size=8
    ),
    "CLIP": from_transformers(
        "CLIPModel",
        "CLIPConfig",
        lambda: text() | {"pixel_values": image(32)},
        text_config=TEXT | WIDTH,
        vision_config=WIDTH | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    ),
}


class Bound(nn.Module):
    """A model as a function of its first input alone; the others are bound to it."""

    def __init__(self, model: nn.Module, **others: Tensor) -> None:
        super().__init__()
        self.model, self.others = model, others

    def forward(self, first: Tensor) -> Any:
        return self.model(first, **self.others)


@dataclass(frozen=True)
class Network:
    """A digital network in evaluation mode, and inputs for it."""

    name: str
    digital: nn.Module
    inputs: dict[str, Tensor]

    def output(self, model: nn.Module) -> Tensor:
        """The first thing that a model computes from the inputs."""
        y = model(**self.inputs)
        return y if isinstance(y, Tensor) else next(v for v in y.values() if isinstance(v, Tensor))

    def on_chip(self, profile: Profile) -> nn.Module:
        """The network on chip 3, with its ranges."""
        model, (first, *_) = convert(self.digital, profile, chip=3), self.inputs.values()
        others = dict(list(self.inputs.items())[1:])
        calibrate_ranges(Bound(model, **others) if others else model, [first])
        return model


@pytest.fixture(params=NETWORKS, scope="module")
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    digital, inputs = NETWORKS[request.param]()
    return Network(request.param, digital.eval(), inputs)
