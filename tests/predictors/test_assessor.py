"""The semi-supervised assessor: its equations, and what each term reaches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nasengine.encoding import Graphs
from nasengine.task import Shapes
from predictors.assessor import Assessor, Network, _matrices, order_loss, rebuilding_loss, similarity
from search_spaces.nasbench201 import NASBench201

SHAPES = Shapes((3, 8, 8), 4)


def _network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(inputs=6, hidden=7, embedding=5)


def _embedded(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def _graph(embedded: Tensor, width: float = 8.0, threshold: float = 1e-3) -> Tensor:
    return similarity(embedded, embedded, torch.tensor(width), threshold).fill_diagonal_(0.0)


def test_similarity_is_the_thresholded_kernel_of_squared_distances() -> None:
    embedded = _embedded(6)
    weights = similarity(embedded, embedded, torch.tensor(2 * 0.9**2), 0.05)
    for one, other in itertools.product(range(6), repeat=2):
        kernel = math.exp(-float(((embedded[one] - embedded[other]) ** 2).sum()) / (2 * 0.9**2))
        assert weights[one, other].item() == pytest.approx(kernel if kernel > 0.05 else 0.0, abs=1e-5)


def test_the_similarities_are_symmetric_and_their_normalised_spectrum_is_in_the_unit_interval() -> None:
    weights = _graph(_embedded(20)) + torch.eye(20)
    torch.testing.assert_close(weights, weights.T)
    assert weights.min() >= 0 and weights.max() <= 1
    roots = weights.sum(1).rsqrt()
    values = torch.linalg.eigvalsh(roots[:, None] * weights * roots)
    assert values.min() > -1.0001 and values.max() == pytest.approx(1.0, abs=1e-4)


def test_the_assessor_is_two_normalised_convolutions_and_a_linear_layer() -> None:
    network, embedded = _network(), _embedded(9)
    weights = _graph(embedded) + torch.eye(9)
    normalised = weights / (weights.sum(1)[:, None] * weights.sum(1)).sqrt()
    hidden = embedded
    for layer in (network.first, network.second):
        hidden = torch.relu(normalised @ hidden @ layer.lin.weight.T + layer.bias)
    torch.testing.assert_close(network.assess(embedded, _graph(embedded)), network.output(hidden)[:, 0])


def test_without_edges_the_assessor_is_a_perceptron() -> None:
    network, embedded = _network(), _embedded(9)
    isolated = _graph(embedded, threshold=1.0)
    assert isolated.sum() == 0
    hidden = torch.relu(network.first.lin(embedded) + network.first.bias)
    hidden = torch.relu(network.second.lin(hidden) + network.second.bias)
    torch.testing.assert_close(network.assess(embedded, isolated), network.output(hidden)[:, 0])


def test_permuting_the_batch_permutes_the_scores_and_equal_embeddings_have_equal_scores() -> None:
    network, embedded = _network(), _embedded(9)
    embedded[3] = embedded[5]
    scores, order = network.assess(embedded, _graph(embedded)), torch.randperm(9)
    torch.testing.assert_close(network.assess(embedded[order], _graph(embedded[order])), scores[order])
    assert scores[3].item() == pytest.approx(scores[5].item(), abs=1e-6)


def test_an_asked_embedding_is_joined_to_the_anchors_and_changes_nothing_in_them() -> None:
    network, anchors, asked = _network(), _embedded(8), _embedded(3, seed=2)
    across, among = similarity(asked, anchors, torch.tensor(8.0), 1e-3), _graph(anchors)
    answers = network.ask(asked, anchors, across, among)
    for row in range(3):
        graph = torch.zeros(9, 9)
        graph[:8, :8], graph[8, :8] = among, across[row]  # one way: the anchors do not see what is asked
        alone = network.assess(torch.cat([anchors, asked[row : row + 1]]), graph)
        assert answers[row].item() == pytest.approx(alone[8].item(), rel=1e-5)


def test_the_regression_reaches_an_unlabelled_one_only_within_two_edges() -> None:
    network = _network()
    chain = torch.diag(torch.ones(4), 1) + torch.diag(torch.ones(4), -1)  # 0 - 1 - 2 - 3 - 4
    embedded = _embedded(5).requires_grad_()
    scores = network.assess(embedded, chain)
    (gradient,) = torch.autograd.grad(F.mse_loss(scores[:1], torch.ones(1)), embedded)
    reached = gradient.abs().sum(1) > 0
    assert reached.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("reconstruction", [0.0, 1.0])
def test_a_term_without_weight_has_no_gradient(reconstruction: float) -> None:
    assessor = Assessor(space="nasbench201", reconstruction=reconstruction, ranking=0.5)
    network, inputs = _network(), torch.randn(12, 6)
    loss = assessor._loss(network, inputs, torch.randn(5))
    names, weights = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    still = {n.split(".")[0] for n, g in zip(names, gradients, strict=True) if g is None or not g.any()}
    assert still == ({"decoder"} if reconstruction == 0 else {"first", "second", "output"})


def test_the_joint_loss_is_the_weighted_sum_of_its_terms() -> None:
    network, inputs, targets = _network(), torch.randn(12, 6), torch.randn(5)
    losses = {
        share: Assessor(space="nasbench201", reconstruction=share, ranking=0.0)._loss(network, inputs, targets)
        for share in (0.0, 0.3, 1.0)
    }
    torch.testing.assert_close(losses[0.3], 0.7 * losses[0.0] + 0.3 * losses[1.0])
    rebuilt = network.decoder(network.encoder(inputs))
    parts = [((rebuilt - inputs)[part] ** 2).mean() for part in (slice(5), slice(5, None))]
    torch.testing.assert_close(losses[1.0], sum(parts) / 2)
    torch.testing.assert_close(rebuilding_loss(rebuilt, inputs, 12), F.mse_loss(rebuilt, inputs))


def test_the_loss_on_pairs_is_the_weighed_logistic_loss() -> None:
    scores, targets = torch.tensor([0.3, -0.2, 1.1]), torch.tensor([1.0, 2.0, 0.5])
    total = 0.0
    for one, other in itertools.permutations(range(3), 2):
        wanted = float(targets[one] - targets[other])
        margin = float(scores[one] - scores[other]) * math.copysign(1.0, wanted)
        total += math.log1p(math.exp(-margin)) * abs(wanted)
    assert order_loss(scores, targets).item() == pytest.approx(total / 9, rel=1e-5)


def test_matrices_are_the_edges_and_the_one_hot_operations() -> None:
    operations = np.array([[0, 1, 2], [0, 2, -1]], np.int16)
    adjacency = np.zeros((2, 3, 3), bool)
    adjacency[0, 0, 2] = adjacency[0, 1, 2] = adjacency[1, 0, 1] = True
    graphs = Graphs(operations, adjacency, np.zeros((2, 0), np.float32), ("a", "b", "c"))
    expected = [[0, 1, 1, *(1, 0, 0), *(0, 1, 0), *(0, 0, 1)], [1, 0, 0, *(1, 0, 0), *(0, 0, 1), *(0, 0, 0)]]
    assert _matrices(graphs, 3).tolist() == expected
    wider = _matrices(graphs, 4)
    assert wider.shape == (2, 6 + 12) and wider.sum() == sum(map(sum, expected))


def test_the_papers_form_learns_and_its_answers_do_not_depend_on_each_other() -> None:
    space = NASBench201()
    every = space.everything(SHAPES)
    order = np.random.default_rng(0).permutation(len(every))
    known, asked = [every[row] for row in order[:80]], [every[row] for row in order[80:180]]

    def score(architecture: object) -> float:
        text = str(architecture)
        return 3.0 * text.count("nor_conv_3x3") + text.count("nor_conv_1x1") - text.count("none")

    paper = Assessor(space=space, shapes=SHAPES, encoding="matrix", metric="equal", ranking=0.0, members=1, steps=120)
    guesses = paper.fit(known, [score(a) for a in known], asked).predict(asked)
    assert np.corrcoef(guesses, [score(a) for a in asked])[0, 1] > 0.6
    np.testing.assert_allclose(paper.predict(asked[7:9]), guesses[7:9], rtol=1e-4)


def test_the_anchors_hold_labelled_and_unlabelled_architectures() -> None:
    space = NASBench201()
    every = space.everything(SHAPES)[2000:2100]
    assessor = Assessor(space=space, shapes=SHAPES, steps=2, members=1, anchors=30)
    assessor.fit(every[:40], np.arange(40.0), every[40:])
    assert len(assessor._anchors) == 30 + 15
    assert len(assessor.fit(every[:40], np.arange(40.0))._anchors) == 30


def test_the_uncertainty_is_that_of_labels_not_seen() -> None:
    rng = np.random.default_rng(0)
    space = NASBench201()
    choices = space.choices(SHAPES)
    graphs = space.encode([space.sample(choices, torch.Generator().manual_seed(seed)) for seed in range(300)], SHAPES)
    targets = (graphs.operations == 2).sum(axis=1) + rng.normal(size=300)
    predictor = Assessor(space=space, members=1, steps=30, hidden=32, embedding=16)
    predictor._fit(graphs.take(slice(0, 200)), targets[:200], graphs)
    means, deviations = predictor._predict(graphs.take(slice(200, 300)), True)
    missed = np.abs(means - targets[200:])
    assert 0.4 < (missed < deviations).mean() < 0.95 and (missed < 2 * deviations).mean() > 0.75
