"""Sizes that are choices: layers of which a mixture uses the first channels, features, layers or kernel taps.

Hard: the layers compute with a slice of their weights, and nothing else is computed. Soft: the unit u of a size with
weights p over the values s_i is multiplied by the mask m_u = sum_i p_i [u < s_i] where a layer reads it; under gates by
its gate. A layer multiplies its weights or its input, whichever costs less for the same sum (`read`). The modules in
between (activations, batch norm, depthwise convolutions) treat every unit by itself and need no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.errors import ArchitectureError
from nasengine.supernet import Decision, Gates, decided, once_a_call

Product = tuple["int | Size", ...]
"""Factors; the sum of some products is a number of weights."""


@dataclass(frozen=True)
class Size:
    """A number that a choice decides: of channels, features, heads, layers, kernel taps, pixels.

    Attributes:
        label: of the choice; layers with the same label share the decision.
        values: one per option, ascending.
        options: their names; the values by default.
    """

    label: str
    values: tuple[int, ...]
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = tuple(self.values) if isinstance(self.values, Iterable) else (self.values,)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "options", tuple(self.options) or tuple(map(str, values)))
        rising = all(isinstance(v, int) for v in self.values) and list(self.values) == sorted(self.values)
        if not rising or not self.values or self.values[0] < 1 or len(self.values) != len(self.options):
            raise ArchitectureError(
                f"The values of choice {self.label!r} must be ascending whole numbers from 1 on, one an option, "
                f"but got {list(self.values)} for the options {', '.join(map(str, self.options))}."
            )

    def __deepcopy__(self, memo: object) -> Size:
        return self  # nothing of it can change, and extracting a network would copy thousands

    @property
    def choice(self) -> Choice:
        """The decision, an ordinal one."""
        return Choice(self.label, self.options, ordinal=True)

    @property
    def largest(self) -> int:
        """The last value."""
        return self.values[-1]

    def map(self, function: Callable[[int], int]) -> Size:
        """Another number that the same choice decides."""
        return Size(self.label, tuple(map(function, self.values)), self.options)

    def of(self, architecture: Architecture) -> int:
        """The value that an architecture takes."""
        return self.values[self.options.index(architecture[self.label])]


def largest(size: int | Size) -> int:
    """The number itself, or the largest value of a size."""
    return size.largest if isinstance(size, Size) else size


def value(size: int | Size, architecture: Architecture) -> int:
    """The number itself, or the value that an architecture takes."""
    return size.of(architecture) if isinstance(size, Size) else size


def active(size: int | Size) -> int:
    """How many units the current call computes: the decided value, or all under a soft mixture or gates."""
    if not isinstance(size, Size):
        return size
    weights = decided(size.label)
    return size.values[weights] if isinstance(weights, int) else size.largest


def mask(size: int | Size) -> Tensor | None:
    """The factors of the units under the current call's soft mixture, shape (largest,); None where all count fully.

    Gates apply to the size that has as many units as there are gates.
    """
    if not isinstance(size, Size):
        return None
    weights = decided(size.label)
    if isinstance(weights, int):
        return None
    if isinstance(weights, Gates):
        return weights.values if len(weights.values) == size.largest else None
    return once_a_call(size, lambda: weights @ steps(size, weights))


def cut(tensor: Tensor, *counts: int) -> Tensor:
    """The first `counts` entries of the first dimensions; a slice only where it is smaller.

    The gradient of a slice is a copy of the whole tensor, also where nothing is left out.
    """
    for dim, count in enumerate(counts):
        tensor = tensor if tensor.shape[dim] == count else tensor.narrow(dim, 0, count)
    return tensor


def read(x: Tensor, weight: Tensor, size: int | Size) -> tuple[Tensor, Tensor]:
    """Inputs (..., units) and a weight (..., units) that reads them, one of which is multiplied by the mask of a size.

    That is the weight, which has fewer numbers; but the inputs where the mask alone learns, whose gradient would else
    need that of the weight, a product of matrices.
    """
    factors = mask(size)
    if factors is None:
        return x, weight
    return (x * factors, weight) if learns_alone(factors, weight) else (x, weight * factors)


def learns_alone(factors: Tensor, weight: Tensor) -> bool:
    """Whether factors need a gradient and the weight that they could be multiplied into needs none."""
    return torch.is_grad_enabled() and factors.requires_grad and not weight.requires_grad


def steps(size: Size, like: Tensor) -> Tensor:
    """(options, largest): 1 where a unit belongs to an option, else 0."""
    units = torch.arange(size.largest, device=like.device)
    # a tensor of the values would be copied to the device, for which a GPU is waited for
    return torch.stack([units < value for value in size.values]).to(like.dtype)


class ElasticLayer(Decision):
    """A layer with sizes. The weights are those of the largest sizes.

    Attributes:
        features: the sizes of its inputs and outputs, whose units can change places.
        made: those among them whose units begin in this layer.
        weights: products whose sum is the number of parameters.
        work: products to which the multiply-adds are proportional; empty where there are none.
    """

    features: tuple[Size, ...] = ()
    made: tuple[Size, ...] = ()
    weights: tuple[Product, ...] = ()
    work: tuple[Product, ...] = ()

    def _declare(self, reads: Sequence[int | Size], makes: Sequence[int | Size] = (), kernel: int | Size = 1) -> None:
        self.features = tuple(dict.fromkeys(size for size in (*reads, *makes) if isinstance(size, Size)))
        self.made = tuple(size for size in makes if isinstance(size, Size))
        found = [*self.features, kernel] if isinstance(kernel, Size) else list(self.features)
        self.choices = tuple({size.label: size.choice for size in found}.values())

    def importance(self, size: Size) -> Tensor | None:
        """Sum of the absolute weights that read each unit of `size`, (units,); None if this layer reads none."""
        del size
        return None

    def permute(self, size: Size, order: Tensor) -> None:
        """Puts the units of `size` into another order, (units,) int64."""
        del size, order

    def scale(self, size: Size, factors: Tensor) -> None:
        """Multiplies the weights that read `size` by factors (units,): folds gates into them."""
        del size, factors

    def _receive(self, x: Tensor, size: int | Size, dim: int) -> int:
        count = active(size)
        if x.shape[dim] != count:
            name = f"the {count} that choice {size.label!r} decides" if isinstance(size, Size) else f"the {size} inputs"
            raise ArchitectureError(
                f"An {type(self).__name__} must get {name}, but got {x.shape[dim]}; give it and the layer before it "
                "one size."
            )
        return count


class ElasticDepth(Decision):
    """The first layers of a sequence: (x) -> x after as many layers as the choice decides.

    Under a soft mixture a layer l beyond the least depth is weighted by its share g = sum_d p_d [l < d]:
    x <- (1 - g) x + g layer(x); such layers must keep the shape.
    """

    def __init__(self, label: str, layers: Sequence[nn.Module], least: int = 1) -> None:
        super().__init__()
        if not 1 <= least <= len(layers):
            raise ArchitectureError(
                f"The least depth of choice {label!r} must be from 1 to its {len(layers)} layers, but got {least}."
            )
        self.size = Size(label, tuple(range(least, len(layers) + 1)))
        self.choices = (self.size.choice,)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        shares, least = mask(self.size), self.size.values[0]
        for place, layer in enumerate(list(self.layers)[: active(self.size)]):
            y = layer(x)
            if shares is not None and place >= least:
                if y.shape != x.shape:
                    raise ArchitectureError(
                        f"Layers that choice {self.size.label!r} can leave out must keep the shape, but layer "
                        f"{place + 1} makes {tuple(y.shape)} of {tuple(x.shape)}."
                    )
                y = x + shares[place] * (y - x)
            x = y
        return x

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        return nn.Sequential(*list(self.layers)[: self.size.of(architecture)])

    def parts(self) -> list[tuple[nn.Module, str]]:
        options = zip(self.size.values, self.size.options, strict=True)
        return [(layer, option) for depth, option in options for layer in list(self.layers)[:depth]]


class Resize(nn.Module):
    """Images (batch, channels, height, width) at `pixels` a side, bilinear with antialiasing."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        size = (self.pixels, self.pixels)
        return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


class ElasticResolution(Decision):
    """A network on images at an elastic number of pixels; under a soft mixture the weighted sum of its outputs."""

    def __init__(self, label: str, pixels: Sequence[int], network: nn.Module) -> None:
        super().__init__()
        self.size = Size(label, tuple(pixels))
        self.choices = (self.size.choice,)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        weights = decided(self.size.label)
        if isinstance(weights, int):
            output: Tensor = self.network(Resize(self.size.values[weights])(x))
            return output
        if isinstance(weights, Gates):
            raise ArchitectureError(f"Choice {self.size.label!r} is between resolutions, which have no gates.")
        shares = zip(weights.unbind(), self.size.values, strict=True)
        return torch.stack([share * self.network(Resize(pixels)(x)) for share, pixels in shares]).sum(0)

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        return nn.Sequential(Resize(self.size.of(architecture)), self.network)
