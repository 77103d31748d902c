"""Vision transformers of timm and of transformers with random weights, small, and their export by torch."""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

IMAGE = 64
SMALL = {"depth": 2, "img_size": IMAGE, "num_classes": 10}
SMALL_CONFIG = {
    "hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768, "image_size": IMAGE,
    "patch_size": 16,
}  # fmt: skip


class _Torchvision:
    """Finds any module of torchvision, with any class in it.

    timm takes transforms of images from there, which no model needs, and torchvision must be of the very build that
    torch is.
    """

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            if name == "InterpolationMode":
                return Enum(name, "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")
            return type(name, (), {})

        module.__getattr__ = get  # type: ignore[method-assign]


@contextmanager
def _without_torchvision() -> Iterator[None]:
    finder = _Torchvision()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def timm(name: str, *, fused: bool = True, **changes: Any) -> Any:
    """A model of timm; `fused` attention is one call of torch."""
    with _without_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = importlib.import_module("timm")
    importlib.import_module("timm.layers").set_fused_attn(fused)
    return library.create_model(name, **changes)


def transformers(family: str, kind: str, attention: str, **changes: Any) -> Any:
    """A model of transformers that returns its logits, or its pooled tokens, alone."""
    import torch

    library = importlib.import_module("transformers")
    config = getattr(library, f"{family}Config")(**{**SMALL_CONFIG, "attn_implementation": attention, **changes})
    model = getattr(library, f"{family}{kind}")(config)

    class Only(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            out = self.model(pixel_values=image)
            return out.logits if "logits" in out else out.pooler_output

    return Only()


MODELS: dict[str, Callable[[], Any]] = {
    "timm ViT": lambda: timm("vit_tiny_patch16_224", **SMALL),
    "timm DeiT": lambda: timm("deit_tiny_distilled_patch16_224", fused=False, **SMALL),
    "transformers ViT": lambda: transformers("ViT", "ForImageClassification", "sdpa", num_labels=10),
    "transformers DeiT": lambda: transformers("DeiT", "ForImageClassificationWithTeacher", "eager", num_labels=10),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "LayerScale": lambda: timm("deit3_small_patch16_224", **SMALL),
    "mean of the tokens": lambda: timm("vit_tiny_patch16_224", global_pool="avg", class_token=False, **SMALL),
    "registers": lambda: timm("vit_small_patch14_reg4_dinov2", **{**SMALL, "img_size": 56}),
    "DINOv2": lambda: transformers("Dinov2", "ForImageClassification", "sdpa", num_labels=10),
    "CLIP": lambda: transformers("CLIPVision", "Model", "eager"),
    "SigLIP": lambda: transformers("SiglipVision", "Model", "sdpa"),
}
FULL: dict[str, Callable[[], Any]] = {
    "DeiT-Ti": lambda: timm("deit_tiny_patch16_224"),
    "ViT-S": lambda: timm("vit_small_patch16_224"),
}


def export(build: Callable[[], Any], path: Path, *, dynamo: bool, opset: int, size: int = IMAGE, **how: Any) -> Path:
    """A model with weights that are random everywhere (models begin with zeros and ones in many places)."""
    import torch

    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            vector = parameter.ndim < 2 or parameter.shape[0] == 1
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if vector else 0.02)
    if dynamo:
        how |= {"external_data": False, "verbose": False}
    with warnings.catch_warnings():  # torch warns of itself
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.rand(1, 3, size, size),), path, dynamo=dynamo, opset_version=opset, input_names=["image"],
            output_names=["y"], **how,
        )  # fmt: skip
    return path
