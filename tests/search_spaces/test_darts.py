from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.alphas import Alphas
from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.operations import DropPath
from nasengine.seeding import generator
from nasengine.supernet import MixedOp
from nasengine.task import Shapes
from search_spaces._darts_network import ImageNetStem, Network
from search_spaces.darts import DARTS, KINDS

OPERATION_NAMES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
CIFAR = Shapes((3, 32, 32), 10)
SMALL = DARTS(channels=4, layers=3)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights over the options of every choice."""
    choices = DARTS().choices()
    return dict(Alphas(choices, generator(seed), 1.0, like=torch.zeros((), dtype=torch.float64)).mixture("softmax"))


# Choices


def test_choices_of_the_published_space() -> None:
    choices = DARTS().choices(CIFAR)
    assert len(choices) == 2 * 14
    assert all(choice.options == OPERATION_NAMES for choice in choices.values())
    assert list(choices)[:5] == ["normal/0-2", "normal/1-2", "normal/0-3", "normal/1-3", "normal/2-3"]
    assert list(choices)[14] == "reduce/0-2"
    assert list(choices)[-1] == "reduce/4-5"


@pytest.mark.parametrize(("nodes", "edges"), [(1, 2), (2, 5), (8, 44)])
def test_other_numbers_of_nodes(nodes: int, edges: int) -> None:
    space = DARTS(channels=2, layers=3, nodes=nodes)
    assert len(space.choices()) == 2 * edges
    architecture = space.sample(space.choices(), generator(0))
    assert space.read(space.write(architecture)) == architecture
    network = space.build(architecture, Shapes((3, 8, 8), 5))
    assert network(torch.ones(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 5}, "space.channels must be an even number, but got 5"),
        ({"channels": 0}, "space.channels must be at least 2"),
        ({"layers": 2}, "space.layers must be at least 3, but got 2"),
        ({"nodes": 9}, "space.nodes must be at least 1 and at most 8, but got 9"),
        ({"stem": "svhn"}, "space.stem must be auto or cifar or imagenet, but got 'svhn'"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        dataclasses.replace(DARTS(), **settings)  # type: ignore[arg-type]


# Deriving


def test_derive_takes_the_two_strongest_edges_by_their_strongest_operation() -> None:
    rows = {label: torch.full((8,), 0.05) for label in DARTS().choices()}
    rows["normal/1-4"][4] = 0.5
    rows["normal/3-4"][7] = 0.4
    rows["normal/2-4"][0] = 0.9  # "none" decides nothing
    derived = DARTS().derive(DARTS().choices(), rows)
    node = {label: derived[label] for label in derived if label.startswith("normal") and label.endswith("-4")}
    assert node == {
        "normal/0-4": "none",
        "normal/1-4": "sep_conv_3x3",
        "normal/2-4": "none",
        "normal/3-4": "dil_conv_5x5",
    }


def test_ties_go_to_the_first() -> None:
    uniform = {label: torch.full((8,), 1 / 8) for label in DARTS().choices()}
    derived = DARTS().derive(DARTS().choices(), uniform)
    expected = {label: "max_pool_3x3" if label.split("/")[1][0] in "01" else "none" for label in DARTS().choices()}
    assert derived == Architecture(expected)


@pytest.mark.parametrize("seed", range(5))
def test_derive_does_not_see_what_softmax_does_not(seed: int) -> None:
    choices = DARTS().choices()
    tables = Alphas(choices, generator(seed), 1.0, like=torch.zeros((), dtype=torch.float64))
    before = DARTS().derive(choices, tables.mixture("softmax"))
    with torch.no_grad():
        for table in tables.parameters():
            table.add_(torch.linspace(-3.0, 3.0, len(table), dtype=torch.float64)[:, None])
    assert DARTS().derive(choices, tables.mixture("softmax")) == before
    assert DARTS().derive(choices, weights(seed + 100)) != before


def test_samples_use_every_operation_and_input() -> None:
    space, rng = DARTS(), generator(0)
    seen = {label: set[str]() for label in space.choices()}
    for _ in range(400):
        for label, option in space.sample(space.choices(), rng).items():
            seen[label].add(option)
    ever = set(OPERATION_NAMES)
    assert all(options == (ever - {"none"} if label.endswith("-2") else ever) for label, options in seen.items())


def test_check_wants_two_inputs_a_node() -> None:
    space = DARTS()
    choices, architecture = space.choices(), space.read(DARTS_V2)
    space.check(choices, architecture)
    for broken, message in (
        (architecture.replace("normal/0-2", "none"), "two incoming edges, but node 2 of the normal cell has 1"),
        (
            architecture.replace("reduce/3-5", "skip_connect"),
            "two incoming edges, but node 5 of the reduce cell has 3",
        ),
        (architecture.replace("normal/0-2", "conv"), "Choice 'normal/0-2' must be one of none, max_pool_3x3, .*'conv'"),
        (architecture.replace("normal/0-9", "none"), "Space 'darts' has no choice 'normal/0-9'"),
        (Architecture({"normal/0-2": "none"}), "must decide 'normal/1-2'"),
    ):
        with pytest.raises(ArchitectureError, match=message):
            space.check(choices, broken)


def test_neighbours_change_one_operation() -> None:
    space = DARTS()
    architecture = space.read(DARTS_V2)
    neighbours = space.neighbours(space.choices(), architecture)
    assert len(set(neighbours)) == 2 * 8 * 6
    assert architecture not in neighbours


# Networks


def test_parameters_of_the_published_network() -> None:
    space = DARTS(channels=36, layers=20)
    with torch.device("meta"):
        network = space.build(space.read(DARTS_V2), CIFAR)
    assert parameters(network) == 3_349_342


def test_final_settings_are_the_published_ones() -> None:
    final = DARTS(nodes=3, stem="cifar").final()
    assert final == DARTS(channels=36, layers=20, nodes=3, stem="cifar", auxiliary=True)


@pytest.mark.parametrize(("layers", "reductions"), [(8, [2, 5]), (20, [6, 13]), (14, [4, 9]), (3, [1, 2]), (4, [1, 2])])
def test_reductions_stand_at_thirds(layers: int, reductions: list[int]) -> None:
    with torch.device("meta"):
        network = DARTS(channels=4, layers=layers).network(CIFAR)
    assert isinstance(network, Network)
    kinds = [
        next(m.choice.label for m in cell.modules() if isinstance(m, MixedOp)).split("/")[0] for cell in network.cells
    ]
    assert [place for place, kind in enumerate(kinds) if kind == "reduce"] == reductions


def test_channels_and_sizes_of_cells() -> None:
    sizes = []
    network = SMALL.build(SMALL.read(DARTS_V2), CIFAR)
    assert isinstance(network, Network)
    for cell in network.cells:
        cell.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    network(torch.zeros(2, 3, 32, 32))
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_no_learned_scales_in_the_search() -> None:
    network = SMALL.network(CIFAR)
    assert isinstance(network, Network)
    norms = [module for module in network.cells.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.affine for norm in norms)
    derived = SMALL.build(SMALL.read(DARTS_V2), CIFAR)
    assert all(module.affine for module in derived.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("shape", [(3, 7, 7), (3, 9, 9), (1, 28, 28), (1, 8, 8), (4, 5, 12), (3, 1, 1)], ids=str)
def test_image_sizes(shape: tuple[int, int, int]) -> None:
    shapes, x = Shapes(shape, 7), torch.randn(4, *shape, generator=generator(0))
    supernet = SMALL.supernet(shapes, F.cross_entropy)
    architecture = SMALL.sample(supernet.choices, generator(1))
    assert supernet(x, supernet.one_hot(architecture)).shape == (4, 7)
    network = dataclasses.replace(SMALL, auxiliary=True).build(architecture, shapes)
    logits, auxiliary = network(x)
    assert logits.shape == auxiliary.shape == (4, 7)
    assert network.eval()(x).shape == (4, 7)


def test_other_inputs_than_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"needs images .* shape \(12,\); take other data or another space\.$"):
        SMALL.network(Shapes((12,), 2))


def test_imagenet_network() -> None:
    space = DARTS(channels=48, layers=14, auxiliary=True)
    shapes = Shapes((3, 224, 224), 1000)
    sizes = []
    with torch.device("meta"):
        network = space.build(space.read(DARTS_V2), shapes)
        assert isinstance(network, Network)
        for cell in network.cells:
            cell.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
        logits, auxiliary = network(torch.zeros(2, 3, 224, 224))
    assert logits.shape == auxiliary.shape == (2, 1000)
    assert sizes == [28] * 4 + [14] * 5 + [7] * 5
    network.auxiliary = None
    assert parameters(network) == pytest.approx(4.7e6, rel=0.02)


@pytest.mark.parametrize(
    ("side", "stem", "imagenet"), [(95, "auto", False), (96, "auto", True), (32, "imagenet", True)]
)
def test_stems(side: int, stem: str, imagenet: bool) -> None:
    space = dataclasses.replace(SMALL, stem=stem)  # type: ignore[arg-type]
    with torch.device("meta"):
        network = space.network(Shapes((3, side, side), 2))
    assert isinstance(network, Network)
    assert isinstance(network.stem, ImageNetStem) == imagenet


def test_small_imagenet_network_runs() -> None:
    space = dataclasses.replace(SMALL, auxiliary=True)
    network = space.build(space.read(DARTS_V2), Shapes((3, 96, 97), 5))
    logits, auxiliary = network(torch.randn(2, 3, 96, 97, generator=generator(0)))
    (logits.sum() + auxiliary.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_auxiliary_head_is_for_training() -> None:
    architecture = SMALL.read(DARTS_V2)
    plain = SMALL.build(architecture, CIFAR)
    assert isinstance(plain(torch.zeros(2, 3, 32, 32)), Tensor)
    network = dataclasses.replace(SMALL, auxiliary=True).build(architecture, CIFAR)
    assert parameters(network) > parameters(plain)
    assert isinstance(network(torch.zeros(2, 3, 32, 32)), tuple)
    assert isinstance(network.eval()(torch.zeros(2, 3, 32, 32)), Tensor)


def test_drop_path_is_on_all_edges_but_identities() -> None:
    network = SMALL.build(SMALL.read(DARTS_V2), CIFAR)
    drops = [module for module in network.modules() if isinstance(module, DropPath)]
    assert (
        len(drops) == 6 + 2 * 8 - 2 * 3
    )  # normal: 8 less 2 identities; reductions: the 3 skips from state 2 are identities
    x = torch.randn(4, 3, 32, 32, generator=generator(0))
    still = network(x)
    assert torch.equal(network(x), still)
    for drop in drops:
        drop.probability = 0.5
    torch.manual_seed(0)
    first, second = network(x), network(x)
    assert not torch.equal(first, second)
    network.eval()
    assert torch.equal(network(x), network(x))


# Genotypes


def test_genotype_reads_back() -> None:
    space = DARTS()
    architecture = space.read(DARTS_V2)
    assert architecture["normal/2-5"] == "dil_conv_3x3"
    assert architecture["reduce/0-2"] == "max_pool_3x3"
    assert sum(option != "none" for option in architecture.values()) == 16
    assert space.read(space.write(architecture)) == architecture
    assert space.read(f"\n  {DARTS_V2}\n") == architecture


def test_range_is_understood() -> None:
    space, text = DARTS(), DARTS_V2.replace("[2, 3, 4, 5]", "range(2, 6)")
    assert "range" in text
    assert space.read(text) == space.read(DARTS_V2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Genotype", "Genome", r"must be Genotype\(.*but it is not Genotype\(name=\.\.\.\)"),
        ("normal=", "", r"but it is not Genotype\(name=\.\.\.\)"),
        ("normal_concat", "normal_join", "but it names normal, normal_join, reduce, reduce_concat"),
        ("])", "]", r"but '\(' was never closed"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3', '0')", r"\('sep_conv_3x3', '0'\) is not a pair"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3', True)", r"\('sep_conv_3x3', True\) is not a pair"),
        ("('sep_conv_3x3', 0)", "'sep_conv_3x3'", "'sep_conv_3x3' is not a pair"),
        ("('sep_conv_3x3', 0)", "('sep_conv_9x9', 0)", "must be one of none, .*but got 'sep_conv_9x9'"),
        ("('sep_conv_3x3', 0)", "('none', 0)", "node 2 of the normal cell has 1"),
        (
            "('sep_conv_3x3', 0)",
            "('sep_conv_3x3', 2)",
            r"two different earlier inputs, but node 2 .*\('sep_conv_3x3', 2\)",
        ),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3', -1)", r"node 2 of the normal cell has \('sep_conv_3x3', -1\)"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3', 1)", "two different earlier inputs, but node 2 of the normal cell"),
        ("('sep_conv_3x3', 0), ", "", "must have 8 pairs in the normal cell and join all nodes, but got 7 pairs"),
        ("[2, 3, 4, 5]", "[2, 3, 4]", r"join all nodes, but got 8 pairs joined over \[2, 3, 4\]"),
        ("[2, 3, 4, 5]", "range(2, 7)", r"joined over \[2, 3, 4, 5, 6\]"),
        ("[2, 3, 4, 5]", "range(1000000000000)", r"range\(1000000000000\) is too long"),
        ("[2, 3, 4, 5]", "range(2, 6, 0)", "arg 3 must not be zero"),
        ("[2, 3, 4, 5]", "4", "'int' object is not iterable"),
    ],
)
def test_other_genotypes_are_refused(old: str, new: str, message: str) -> None:
    assert old in DARTS_V2
    with pytest.raises(ArchitectureError, match=message):
        DARTS().read(DARTS_V2.replace(old, new, 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "Genotype",
        "Genotype()",
        "Genotype(1, 2, 3, 4)",
        "Genotype(**{'normal': []})",
        "-" * 200_000 + "1",
        "(" * 3_000 + ")" * 3_000,
        "edge/0-2=none",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_texts_that_are_no_genotype(text: str) -> None:
    with pytest.raises(ArchitectureError, match="A genotype must be Genotype"):
        DARTS().read(text)


@pytest.mark.parametrize(
    "code", ["exec('raise SystemExit')", "__import__('os').abort()", "[print(x) for x in (1,)]", "range(exit())"]
)
@pytest.mark.parametrize("place", ["Genotype", "[2, 3, 4, 5]", "('sep_conv_3x3', 0)", "'sep_conv_3x3'"])
def test_code_is_not_run(place: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArchitectureError, match="A genotype must be Genotype"):
        DARTS().read(DARTS_V2.replace(place, code, 1))
    assert capsys.readouterr().out == ""


def test_genotype_of_another_number_of_nodes() -> None:
    with pytest.raises(ArchitectureError, match=r"space\.nodes=3 must have 6 pairs in the normal cell"):
        DARTS(nodes=3).read(DARTS_V2)


# What is worth watching


def test_graphs() -> None:
    space = DARTS()
    graphs = space.graphs(space.read(DARTS_V2))
    assert list(graphs) == list(KINDS)
    normal = graphs["normal"]
    assert list(normal) == ["c_{k-2}", "c_{k-1}", "0", "1", "2", "3", "c_{k}"]
    assert normal.edges["0", "3"]["operation"] == "dil_conv_3x3"
    assert normal.number_of_edges() == 8 + 4
    assert list(normal.predecessors("c_{k}")) == ["0", "1", "2", "3"]


def test_skips_are_counted() -> None:
    space = DARTS()
    architecture = space.read(DARTS_V2)
    assert space.indicators(architecture) == {"skips_normal": 2, "skips_reduce": 3}
    assert space.warning(architecture) == ""
    for label in ("normal/0-2", "normal/1-2", "normal/0-3"):
        assert space.warning(architecture) == ""
        architecture = architecture.replace(label, "skip_connect")
    assert space.warning(architecture).startswith("5 of the 8 edges of the normal cell are skip connections")
