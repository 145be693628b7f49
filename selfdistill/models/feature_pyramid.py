"""A feature pyramid as a teacher: it fuses the model's maps from deep to shallow and back, and classifies them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.outputs import ModelWrapper
from ..errors import SpaceError
from .feature_taps import Featured, attention, last_linear, width_of


def _point(inputs: int, outputs: int) -> nn.Sequential:
    """A convolution of single positions, which changes the width."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _depthwise(width: int) -> list[nn.Module]:
    """A 3x3 convolution of each channel, then one of positions."""
    return [nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), *_point(width, width), nn.ReLU()]


class Fusion(nn.Module):
    """The mean of several maps by weights that are learnt, kept at 0 or above, and convolved ``depth`` times."""

    def __init__(self, count: int, width: int, depth: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(count))
        self.layers = nn.Sequential(*(layer for _ in range(depth) for layer in _depthwise(width)))

    def forward(self, maps: list[Tensor]) -> Tensor:
        share = self.weights.relu()
        share = share / (share.sum() + 1e-6)
        mixed = torch.stack([w * m for w, m in zip(share, maps, strict=True)]).sum(0)
        return self.layers(mixed)  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """Two ways of fusion, each map staying at its size, ``width`` times as wide as it was.

    L_i = lateral(F_i);  from deep to shallow P_i = fuse(L_i, up(P_{i+1})), P_n = L_n;
    from shallow to deep T_i = fuse(L_i, P_i, down(T_{i-1})), T_1 = P_1, T_n = fuse(L_n, down(T_{n-1})).
    """

    def __init__(self, widths: list[int], width: int, depth: int) -> None:
        super().__init__()
        sizes, top = [width * w for w in widths], len(widths) - 1
        self.lateral = nn.ModuleList(_point(a, b) for a, b in zip(widths, sizes, strict=True))
        self.up = nn.ModuleList(_point(sizes[i + 1], sizes[i]) for i in range(top))
        self.down = nn.ModuleList(_point(sizes[i], sizes[i + 1]) for i in range(top))
        self.above = nn.ModuleList(Fusion(2, sizes[i], depth) for i in range(top))
        self.below = nn.ModuleList(Fusion(3 if i < top else 2, sizes[i], depth) for i in range(1, top + 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        lateral = [layer(m) for layer, m in zip(self.lateral, maps, strict=True)]
        top = [lateral[-1]]  # P, deep to shallow, then turned round
        for i in reversed(range(len(maps) - 1)):
            wider = F.interpolate(self.up[i](top[-1]), lateral[i].shape[2:], mode="nearest")
            top.append(self.above[i]([lateral[i], wider]))
        top.reverse()
        taught = [top[0]]
        for i in range(1, len(maps)):
            smaller = F.adaptive_max_pool2d(self.down[i - 1](taught[-1]), lateral[i].shape[2:])
            inner = [top[i]] if i < len(maps) - 1 else []
            taught.append(self.below[i - 1]([lateral[i], *inner, smaller]))
        return taught


class PyramidModel(Featured):
    """A model with a pyramid of its own maps as teacher, learnt beside it.

    Heads: ``energy:L`` of each layer, ``pyramid:L`` the same of the pyramid's map at that layer (rows, positions), and
    ``taught`` (rows, classes), a linear classifier on the pyramid's last map, pooled.

    Raises:
        SpaceError: a layer says no map.
    """

    def __init__(self, model: nn.Module, layers: tuple[str, ...], width: int = 2, depth: int = 2) -> None:
        super().__init__(model, tuple(f"energy:{layer}" for layer in layers))
        widths = [width_of(model, layer) for layer in layers]
        self.layers, self.pyramid = layers, Pyramid(widths, width, depth)
        self.classifier = nn.Linear(width * widths[-1], last_linear(model).out_features)

    def extra_heads(self) -> dict[str, Tensor]:
        maps = [self.kept[layer] for layer in self.layers]
        if any(m.dim() != 4 for m in maps):
            raise SpaceError(f"layers {', '.join(self.layers)} do not all say maps; use a model of maps")
        fused = self.pyramid(maps)
        heads = {f"pyramid:{name}": attention(m, name, "energy") for name, m in zip(self.layers, fused, strict=True)}
        return {**heads, "taught": self.classifier(fused[-1].mean((2, 3)))}


@dataclass(frozen=True)
class SelfTeacher(ModelWrapper):
    """Prepares a model factory for a pyramid as teacher: see `PyramidModel`. The final model is the bare model."""

    layers: tuple[str, ...]
    width: int = 2
    depth: int = 2

    @property
    def maps(self) -> bool:
        return True

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: PyramidModel(build(), self.layers, self.width, self.depth)
