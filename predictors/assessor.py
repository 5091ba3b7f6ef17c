"""The semi-supervised assessor: an auto-encoder, a graph of similar architectures, a graph convolution over it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nasengine.encoding import Graphs
from nasengine.predictor import Predictor
from nasengine.seeding import generator
from nasengine.settings import setting
from predictors._features import Features
from predictors._kernel import learned

Floats = NDArray[np.float64]


def _convolution(inputs: int, outputs: int) -> Any:
    """Imported late, as it takes seconds that a list of the predictors needs not; its warnings are not for users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.nn import DenseGCNConv
    return DenseGCNConv(inputs, outputs)


class Network(nn.Module):
    """Encoder, decoder and the assessor P of one member.

    Inputs (B, inputs) -> embeddings (B, embedding) -> inputs again, and with a similarity graph (B, B) -> scores (B,).
    """

    def __init__(self, inputs: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, embedding))
        self.decoder = nn.Sequential(nn.Linear(embedding, hidden), nn.ReLU(), nn.Linear(hidden, inputs))
        self.first, self.second = _convolution(embedding, hidden), _convolution(hidden, hidden)
        self.output = nn.Linear(hidden, 1)

    def assess(self, embedded: Tensor, similar: Tensor) -> Tensor:
        """(A4): two graph convolutions with self-loops and a linear layer; the diagonal of `similar` is 0."""
        hidden = torch.relu(self.first(embedded, similar)[0])
        hidden = torch.relu(self.second(hidden, similar)[0])
        scores: Tensor = self.output(hidden)[:, 0]
        return scores

    def ask(self, asked: Tensor, anchors: Tensor, across: Tensor, among: Tensor) -> Tensor:
        """What `assess` gives for each of Q asked embeddings (Q, E) if it alone is joined to A anchors (A, E), whose
        hidden states know nothing of it: similarities `across` (Q, A) and `among` (A, A)."""
        degree = 1.0 + among.sum(dim=1)
        own = 1.0 + across.sum(dim=1, keepdim=True)
        weights = across / (own * degree).sqrt()
        for layer in (self.first, self.second):
            asked = torch.relu(weights @ layer.lin(anchors) + layer.lin(asked) / own + layer.bias)
            anchors = torch.relu(layer(anchors, among)[0])
        scores: Tensor = self.output(asked)[:, 0]
        return scores


def similarity(one: Tensor, other: Tensor, width: Tensor, threshold: float) -> Tensor:
    """(A2), (A3): exp(-d / (2 sigma^2)) of squared distances d of embeddings (N, E) and (M, E), 0 below the threshold.

    `width` is 2 sigma^2.
    """
    weights = torch.exp(-(torch.cdist(one, other) ** 2) / width)
    return torch.where(weights > threshold, weights, torch.zeros_like(weights))


@dataclass(kw_only=True, eq=False, repr=False)
class Assessor(Predictor):
    """Semi-supervised assessor: similar architectures, labelled or not, are neighbours in a graph convolution.

    Minimises (1 - lambda) L_rg + lambda L_rc over mini-batches of labelled and unlabelled architectures (A6): L_rc is
    the error of an auto-encoder on both (A1), L_rg that of the scores of the labelled ones (A5), which two graph
    convolutions (A4) make of the embeddings and of the graph of their similarities (A2, A3).

    Reference: Tang et al., CVPR 2020, arXiv:2005.06821, section 3; equations (A1) to (A6) here in its order.

    The paper's form is encoding=matrix, metric=equal, ranking=0, members=1.

    Differs from the paper: the auto-encoder has linear layers; sigma is relative to the median distance of embeddings;
    the gradient flows through the embeddings, not through the graph; an asked architecture is joined to fixed anchors
    (labelled and unlabelled ones) and not to others that are asked, so that its score does not depend on them; scores
    are normal quantiles; errors are means, without the half in (A5). Beyond the paper: graph features in place of the
    matrix, which do not depend on how nodes are numbered, each group as important as in the most likely Gaussian
    process (metric=learned); a loss on the order of pairs (ranking); several members. The uncertainty is their spread
    and, the same for all, the error of one that has not seen a fifth of the labels.
    """

    name: ClassVar[str] = "assessor"

    encoding: Literal["features", "matrix"] = setting("features", "graph features, or the matrix and its operations")
    metric: Literal["learned", "equal"] = setting(
        "learned", "how much groups of features matter: from the labels, or alike"
    )
    prior: float = setting(3.0, "metric=learned: as that of gaussian-process", above=0)
    sigma: float = setting(0.12, "sigma of the similarities, in median distances of embeddings", above=0)
    threshold: float = setting(1e-3, "similarities that are not above it are no edges", low=0, high=1)
    reconstruction: float = setting(0.5, "lambda, the weight of the auto-encoder's error", low=0, high=1)
    ranking: float = setting(0.7, "share of a loss on the order of pairs in that of the scores", low=0, high=1)
    members: int = setting(3, "networks from other random numbers, whose mean counts", low=1)
    hidden: int = setting(128, "width of the layers", low=1)
    embedding: int = setting(64, "size of an embedding", low=1)
    steps: int = setting(400, "steps of the training", low=1)
    batch_size: int = setting(256, "labelled architectures a batch, and as many unlabelled ones", low=2)
    anchors: int = setting(512, "architectures to which asked ones are joined, labelled ones first", low=1)
    lr: float = setting(2e-3, "learning rate of adam at the start; it falls to 0 by a cosine", above=0)
    weight_decay: float = setting(1e-3, "decoupled weight decay", low=0)
    seed: int = setting(0, "of the weights and batches", low=0)

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        self._features = Features.fitted(pool) if self.encoding == "features" else None
        self._nodes = pool.operations.shape[1]
        self._scale = self._relevance(graphs, targets)
        everything = self._inputs(pool)
        rng = generator(self.seed, 0)
        labels = torch.from_numpy((targets - targets.mean()) / targets.std()).float()
        self._range = np.array([targets.mean(), targets.std()])
        self._members = [self._trained(everything, labels, member) for member in range(self.members)]
        chosen = torch.randperm(len(targets), generator=rng)[: self.anchors]
        spare = len(targets) + torch.randperm(len(pool) - len(targets), generator=rng)[: self.anchors // 2]
        self._anchors = everything[torch.cat([chosen, spare])]
        self._error = self._unseen_error(everything, labels)

    def _relevance(self, graphs: Graphs, targets: Floats) -> NDArray[np.float32]:
        """(F,): by what features are multiplied."""
        if self._features is None:
            return np.ones(1, np.float32)
        groups = self._features.groups
        weights = np.ones(groups.max() + 1)
        if self.metric == "learned":
            rows = np.random.default_rng(self.seed).permutation(len(targets))[:500]
            inputs = self._features(graphs)[rows].astype(np.float64)
            weights = np.exp(learned(inputs, targets[rows], groups, self.prior)[1:-1])
        scale = 3.0 * np.sqrt(weights / weights.mean() / np.bincount(groups))
        relevance: NDArray[np.float32] = scale[groups].astype(np.float32)
        return relevance

    def _inputs(self, graphs: Graphs) -> Tensor:
        if self._features is None:
            return torch.from_numpy(_matrices(graphs, self._nodes))
        return torch.from_numpy((self._features(graphs) * self._scale).clip(-8, 8))

    def _trained(self, inputs: Tensor, targets: Tensor, member: int) -> Network:
        """A network after all steps; the first of the inputs are those with targets."""
        rng = generator(self.seed, 1 + member)
        network = self._new(inputs.shape[1], rng)
        optimizer = torch.optim.AdamW(network.parameters(), self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for labelled, unlabelled in self._batches(len(targets), len(inputs), rng):
            loss = self._loss(network, inputs[torch.cat([labelled, unlabelled])], targets[labelled])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return network.requires_grad_(False)

    def _unseen_error(self, inputs: Tensor, targets: Tensor) -> float:
        """Root of the mean square, by a member that has not seen a fifth of the targets; 1 where these are too few."""
        rows = torch.randperm(len(targets), generator=generator(self.seed, 0))
        held, known = rows[: len(rows) // 5], rows[len(rows) // 5 :]
        if not len(held):
            return 1.0
        order = torch.cat([known, held, torch.arange(len(targets), len(inputs))])
        network = self._trained(inputs[order], targets[known], 0)
        with torch.no_grad():
            guesses = self._asked(network, inputs[held], inputs[known[: self.anchors]])
        return float(np.sqrt(np.mean((guesses - targets[held].numpy()) ** 2)))

    def _new(self, inputs: int, rng: torch.Generator) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
            return Network(inputs, self.hidden, self.embedding)

    def _batches(self, labelled: int, everything: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps):
            few = torch.randperm(labelled, generator=rng)[: self.batch_size]
            many = (
                torch.randint(everything - labelled, (self.batch_size,), generator=rng)
                if everything > labelled
                else few[:0]
            )
            yield few, labelled + many

    def _loss(self, network: Network, inputs: Tensor, targets: Tensor) -> Tensor:
        """(A6), of a batch that begins with the labelled ones."""
        embedded = network.encoder(inputs)
        detached = embedded.detach()
        similar = similarity(detached, detached, self._width(detached), self.threshold).fill_diagonal_(0.0)
        scores = network.assess(embedded, similar)[: len(targets)]
        regression = F.mse_loss(scores, targets)
        if self.ranking and len(targets) > 1:
            regression = (1 - self.ranking) * regression + self.ranking * order_loss(scores, targets)
        if not self.reconstruction:
            return regression
        rebuilt = rebuilding_loss(network.decoder(embedded), inputs, len(targets))
        return (1 - self.reconstruction) * regression + self.reconstruction * rebuilt

    def _width(self, embedded: Tensor) -> Tensor:
        """2 sigma^2 of a batch of embeddings."""
        distances = F.pdist(embedded)
        return (2 * (self.sigma * distances.median()) ** 2).clamp(min=1e-12) if len(distances) else torch.ones(())

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        inputs = self._inputs(graphs)
        with torch.no_grad():
            guesses = np.stack([self._asked(network, inputs, self._anchors) for network in self._members])
        guesses = guesses.astype(np.float64)
        deviations = np.hypot(guesses.std(axis=0), self._error) * self._range[1]
        return guesses.mean(axis=0) * self._range[1] + self._range[0], deviations

    def _asked(self, network: Network, inputs: Tensor, joined: Tensor) -> NDArray[np.float32]:
        anchors = network.encoder(joined)
        width = self._width(anchors)
        among = similarity(anchors, anchors, width, self.threshold).fill_diagonal_(0.0)
        parts = []
        for part in network.encoder(inputs).split(2048):
            across = similarity(part, anchors, width, self.threshold)
            parts.append(network.ask(part, anchors, across, among))
        return torch.cat(parts).numpy()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {} if self._features is None else self._features.arrays()
        arrays |= {"nodes": np.array(self._nodes), "scale": self._scale, "range": self._range}
        arrays |= {"error": np.array(self._error), "anchors": self._anchors.numpy()}
        for number, network in enumerate(self._members):
            arrays |= {f"member.{number}.{name}": value.numpy() for name, value in network.state_dict().items()}
        return arrays

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._features = Features.restored(arrays) if self.encoding == "features" else None
        self._nodes, self._scale, self._range = int(arrays["nodes"]), arrays["scale"], arrays["range"]
        self._anchors, self._error = torch.from_numpy(arrays["anchors"]), float(arrays["error"])
        self._members = []
        for number in range(self.members):
            network = self._new(self._anchors.shape[1], torch.Generator())
            own = {k: v for k, v in arrays.items() if k.startswith(f"member.{number}.")}
            network.load_state_dict({k.split(".", 2)[2]: torch.from_numpy(v) for k, v in own.items()})
            self._members.append(network.requires_grad_(False))


def rebuilding_loss(rebuilt: Tensor, inputs: Tensor, labelled: int) -> Tensor:
    """(A1): the mean square over the first, labelled inputs (B, F) and that over the others, half of each."""
    square = (rebuilt - inputs) ** 2
    parts = [part.mean() for part in (square[:labelled], square[labelled:]) if len(part)]
    return torch.stack(parts).mean()


def order_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over pairs of softplus(-(s_i - s_j) sign(y_i - y_j)) |y_i - y_j|, scores and targets (B,).

    Reference: Burges et al., ICML 2005, eq. 3, each pair weighed by how far its targets are apart.
    """
    wanted = targets[:, None] - targets
    return (F.softplus(-(scores[:, None] - scores) * wanted.sign()) * wanted.abs()).mean()


def _matrices(graphs: Graphs, nodes: int) -> NDArray[np.float32]:
    """(N, nodes (nodes - 1) / 2 + nodes K): the edges as bits, then the one-hot operations; more nodes are cut off."""
    short = max(0, nodes - graphs.operations.shape[1])
    operations = np.pad(graphs.operations, ((0, 0), (0, short)), constant_values=-1)[:, :nodes]
    edges = np.pad(graphs.adjacency, ((0, 0), (0, short), (0, short)))[:, :nodes, :nodes]
    upper = edges[:, *np.triu_indices(nodes, 1)]
    words = operations[:, :, None] == np.arange(len(graphs.vocabulary))
    return np.concatenate([upper, words.reshape(len(words), -1)], axis=1).astype(np.float32)
