"""Units of sizes, moved and folded: function-preserving changes of an elastic network's weights.

A unit is one channel, feature, head or dimension of a head. Sorting puts the important ones first, where slices keep
them; folding multiplies gates into the weights that read the units.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from nasengine.elastic import ElasticLayer, Size
from nasengine.layers import ElasticBatchNorm, ElasticLayerNorm, put
from nasengine.supernet import Decision


def elastic_layers(network: nn.Module) -> Iterator[ElasticLayer]:
    """All layers with sizes."""
    return (module for module in network.modules() if isinstance(module, ElasticLayer))


def feature_sizes(network: nn.Module) -> list[Size]:
    """The sizes that are numbers of units, each once, in the order of the network's layers."""
    return list(dict.fromkeys(size for layer in elastic_layers(network) for size in layer.features))


def sortable(network: nn.Module) -> list[Size]:
    """Those of them whose units can change places.

    Not where a layer reads a size that none makes: a flatten in between ties its units to those of another size.
    """
    sizes, made = feature_sizes(network), {size for layer in elastic_layers(network) for size in layer.made}
    tied = {size.label for size in sizes if size not in made}
    return [size for size in sizes if size.label not in tied]


def gateable(network: nn.Module) -> dict[str, Size]:
    """By label: the size of the choices that decide one number of units and nothing else, which gates can replace."""
    sizes = feature_sizes(network)
    labels = [size.label for size in sizes]
    labels += [label for module in network.modules() if isinstance(module, Decision) for label in _others(module)]
    return {size.label: size for size in sizes if labels.count(size.label) == 1}


def _others(module: Decision) -> list[str]:
    """Labels of the choices that decide something else than a number of units: kernels, depths, operations."""
    if not isinstance(module, ElasticLayer):
        return [choice.label for choice in module.choices]
    products = {size for product in (*module.weights, *module.work) for size in product if isinstance(size, Size)}
    return [size.label for size in products - set(module.features)]


def norm_scales(network: nn.Module, sizes: Iterable[Size]) -> dict[Size, list[nn.Parameter]]:
    """By size: the learned scales (units,) of the norms on it; sizes without norms are left out."""
    norms = [layer for layer in network.modules() if isinstance(layer, (ElasticBatchNorm, ElasticLayerNorm))]
    found = {size: [n.norm.weight for n in norms if n.size == size and n.norm.weight is not None] for size in sizes}
    return {size: scales for size, scales in found.items() if scales}


def importance(network: nn.Module, size: Size) -> Tensor:
    """Sum of |weight| over all weights that read each unit, (units,), as in once-for-all (arXiv:1908.09791, 3.3).

    Differs from the paper's code: all layers that read a unit count, also those of squeeze-and-excitation.
    """
    known = [found for layer in elastic_layers(network) if (found := layer.importance(size)) is not None]
    return torch.stack(known).sum(0) if known else torch.zeros(size.largest)


def order_by(scores: Tensor, parts: Sequence[int] = ()) -> Tensor:
    """Indices of the units by falling score, (units,) int64; units do not cross the boundaries in `parts`.

    Widths that were trained as slices already keep their units: pass their values.
    """
    bounds = sorted({0, len(scores), *parts})
    pieces = [start + scores[start:stop].argsort(descending=True, stable=True) for start, stop in pairwise(bounds)]
    return torch.cat(pieces)


def permute(network: nn.Module, orders: Mapping[Size, Tensor]) -> None:
    """Reorders units in place; the network of the largest sizes computes what it did."""
    for layer in elastic_layers(network):
        for size in layer.features:
            if size in orders:
                layer.permute(size, orders[size].to(next(chain(layer.parameters(), layer.buffers())).device))


def permute_like(network: nn.Module, values: Mapping[str, Tensor], orders: Mapping[Size, Tensor]) -> dict[str, Tensor]:
    """Tensors that belong to the parameters by name (momentum, gradients), in the order of the permuted units."""
    twin = copy.deepcopy(network)
    for name, parameter in twin.named_parameters():
        put(parameter, values[name] if name in values else torch.zeros_like(parameter))
    permute(twin, orders)
    return {name: parameter.detach() for name, parameter in twin.named_parameters() if name in values}


def fold(network: nn.Module, gates: Mapping[Size, Tensor]) -> None:
    """Multiplies gates (units,) into the weights that read the units, in place."""
    for layer in elastic_layers(network):
        for size in layer.features:
            if size in gates:
                layer.scale(size, gates[size])
