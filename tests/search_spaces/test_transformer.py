from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithm import descend
from nasengine.architecture import Architecture
from nasengine.attention import Attention, ToHeads
from nasengine.budget import CostModel
from nasengine.cost import parameters
from nasengine.drawing import text
from nasengine.errors import ArchitectureError, DataError, SettingError, UnknownNameError
from nasengine.loop import seeded
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from nasengine.task import Batch, Shapes
from nasengine.testing import check_space
from nasengine.training import set_drop_path
from search_spaces.transformer import Block, Patches, Transformer

DIGITS, CIFAR, IMAGENET = Shapes((1, 8, 8), 10), Shapes((3, 32, 32), 10), Shapes((3, 224, 224), 1000)
SMALL = Transformer(embedding=12, heads=3, depth=3, mlp=20)
FINE = Transformer(embedding=12, heads=3, depth=3, mlp=20, options=0)


def supernet(space: Transformer, shapes: Shapes = DIGITS, dtype: torch.dtype = torch.float64) -> Supernet:
    """With all weights, biases and norms away from their start."""
    with seeded(0, 0):
        made, rng = space.supernet(shapes, F.cross_entropy).to(dtype), generator(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng, dtype=dtype))
    return made


def images(shapes: Shapes = DIGITS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, *shapes.input, generator=generator(4), dtype=dtype)


def largest(space: Transformer, shapes: Shapes = DIGITS) -> Architecture:
    return space.largest(space.choices(shapes))


# Choices


def test_the_labels_and_the_quarters_of_the_defaults() -> None:
    choices = Transformer().choices(DIGITS)
    blocks = [f"block{place}/{name}" for place in range(1, 5) for name in ("heads", "width", "mlp")]
    assert list(choices) == ["embedding", "depth", *blocks]
    assert choices["embedding"].options == ("16", "32", "48", "64")
    assert choices["depth"].options == choices["block3/heads"].options == ("1", "2", "3", "4")
    assert choices["block4/width"].options == ("4", "8", "12", "16")
    assert choices["block2/mlp"].options == ("64", "128", "192", "256")
    assert all(choice.ordinal for choice in choices.values())


@pytest.mark.parametrize(
    ("options", "width", "depth"),
    [
        (1, ["7"], ["6"]),
        (2, ["4", "7"], ["3", "4", "5", "6"]),
        (4, ["2", "4", "6", "7"], ["2", "3", "4", "5", "6"]),
        (0, ["1", "2", "3", "4", "5", "6", "7"], ["1", "2", "3", "4", "5", "6"]),
        (9, ["1", "2", "3", "4", "5", "6", "7"], ["1", "2", "3", "4", "5", "6"]),
    ],
)
def test_options_are_equal_steps_rounded_up_without_repetition(
    options: int, width: list[str], depth: list[str]
) -> None:
    choices = Transformer(width=7, depth=6, options=options).choices(DIGITS)
    assert list(choices["block1/width"].options) == width
    assert list(choices["depth"].options) == depth


def test_what_is_fixed_is_no_choice_and_has_its_largest_value() -> None:
    space = Transformer(embedding=12, heads=3, depth=2, fixed="embedding, depth,heads")
    assert list(space.choices(DIGITS)) == ["block1/width", "block1/mlp", "block2/width", "block2/mlp"]
    network = space.build(space.smallest(space.choices(DIGITS)), DIGITS)
    assert [tuple(m.linear.weight.shape) for m in network.modules() if isinstance(m, ToHeads)] == [(3, 12)] * 6
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((8, 8), 2),
        ((16, 16), 4),
        ((28, 28), 4),
        ((32, 32), 4),
        ((64, 64), 8),
        ((224, 224), 16),
        ((32, 30), 2),
        ((9, 7), 1),
    ],
)
def test_the_patch_comes_from_the_images(size: tuple[int, int], side: int) -> None:
    with torch.device("meta"):
        network = Transformer().network(Shapes((3, *size), 10))
    (patches,) = (module for module in network.modules() if isinstance(module, Patches))
    assert patches.side == side
    assert network.get_parameter("tokens.positions.values").shape == (size[0] * size[1] // side**2, 64)


@pytest.mark.parametrize("space", [SMALL, FINE, Transformer(embedding=40, heads=5, depth=12, options=0)], ids=str)
def test_texts_read_back(space: Transformer) -> None:
    choices, rng = space.choices(DIGITS), generator(0)
    for _ in range(20):
        architecture = space.sample(choices, rng)
        space.check(choices, architecture)
        assert space.read(space.write(architecture)) == Architecture.parse(str(architecture)) == architecture


# Blocks beyond the depth


def test_samples_leave_out_no_block_but_in_one_way() -> None:
    choices, rng = SMALL.choices(DIGITS), generator(0)
    depths = set()
    for _ in range(30):
        architecture = SMALL.sample(choices, rng)
        depths.add(depth := int(architecture["depth"]))
        for place in range(depth + 1, 4):
            found = [architecture[f"block{place}/{name}"] for name in ("heads", "width", "mlp")]
            assert found == ["1", "1", "5"]
    assert depths == {1, 2, 3}


def test_a_choice_without_effect_must_take_its_first_option() -> None:
    choices = SMALL.choices(DIGITS)
    beyond = largest(SMALL).replace("depth", "2")
    with pytest.raises(ArchitectureError, match=r"'block3/heads' is '3' in a part that is left out; make it '1'\.$"):
        SMALL.check(choices, beyond)
    canonical = SMALL.canonical(choices, beyond)
    SMALL.check(choices, canonical)
    assert canonical["block2/mlp"] == "20" and canonical["block3/mlp"] == "5"


def test_neighbours_grow_by_a_smallest_block_and_lose_a_whole_one() -> None:
    choices = SMALL.choices(DIGITS)
    least = SMALL.smallest(choices)
    deeper = least.replace("depth", "2")
    assert deeper in SMALL.neighbours(choices, least)
    assert least in SMALL.neighbours(choices, deeper)
    wide = deeper.replace("block2/mlp", "20")
    assert least in SMALL.neighbours(choices, wide)
    assert {a["depth"] for a in SMALL.neighbours(choices, wide)} == {"1", "2", "3"}


def test_nothing_is_likelier_than_what_is_derived() -> None:
    choices, rng = SMALL.choices(DIGITS), generator(0)
    weights = {k: torch.rand(len(c.options), generator=rng).softmax(0) for k, c in choices.items()}
    weights["depth"] = torch.tensor([0.1, 0.8, 0.1])
    derived = SMALL.derive(choices, weights)
    assert derived["depth"] == "2"
    best = SMALL.likelihood(choices, weights, derived)
    assert best == pytest.approx(float(torch.stack([w.max() for w in weights.values()]).log().sum()))
    assert all(SMALL.likelihood(choices, weights, a) < best for a in SMALL.neighbours(choices, derived))


# Networks


@pytest.mark.parametrize(
    ("embedding", "heads", "published"), [(192, 3, 5_717_416), (384, 6, 22_050_664), (768, 12, 86_567_656)]
)
def test_the_parameters_of_the_published_networks(embedding: int, heads: int, published: int) -> None:
    space = Transformer(embedding=embedding, heads=heads, depth=12, pooling="class")
    architecture = largest(space, IMAGENET)
    with torch.device("meta"):
        assert parameters(space.build(architecture, IMAGENET)) == published
    assert CostModel(space, IMAGENET).of(architecture).parameters == published


def reference(network: nn.Module, inputs: Tensor, heads: list[int], class_token: bool) -> Tensor:
    """The logits by torch's own transformer, patches by a convolution."""
    parts = network.state_dict()
    weight = parts["tokens.project.weight"]
    side = round((weight.shape[1] / inputs.shape[1]) ** 0.5)
    kernel = weight.view(len(weight), inputs.shape[1], side, side)
    x = F.conv2d(inputs, kernel, parts["tokens.project.bias"], stride=side).flatten(2).transpose(1, 2)
    if class_token:
        x = torch.cat([parts["tokens.first.values"].expand(len(x), 1, -1), x], dim=1)
    x = x + parts["tokens.positions.values"]
    for place, count in enumerate(heads):
        at = f"blocks.{place}"
        qkv = [f"{at}.attention.1.{name}.linear" for name in ("query", "key", "value")]
        layer = nn.TransformerEncoderLayer(
            x.shape[-1],
            count,
            len(parts[f"{at}.mlp.1.weight"]),
            0.0,
            "gelu",
            batch_first=True,
            norm_first=True,
            dtype=torch.float64,
        )
        names = {
            "self_attn.out_proj": f"{at}.attention.1.merge.linear",
            "linear1": f"{at}.mlp.1",
            "linear2": f"{at}.mlp.3",
            "norm1": f"{at}.attention.0",
            "norm2": f"{at}.mlp.0",
        }
        state = {f"{k}.{kind}": parts[f"{v}.{kind}"] for k, v in names.items() for kind in ("weight", "bias")}
        for kind in ("weight", "bias"):
            state[f"self_attn.in_proj_{kind}"] = torch.cat([parts[f"{name}.{kind}"] for name in qkv])
        layer.load_state_dict(state)
        x = layer(x)
    x = F.layer_norm(x, x.shape[-1:], parts["norm.weight"], parts["norm.bias"])
    return F.linear(x[:, 0] if class_token else x.mean(1), parts["classifier.weight"], parts["classifier.bias"])


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_the_full_network_is_the_textbook_transformer(pooling: str) -> None:
    space = Transformer(embedding=12, heads=3, depth=2, mlp=20, pooling=pooling)  # type: ignore[arg-type]
    shapes = Shapes((2, 8, 12), 5)
    made, inputs = supernet(space, shapes), images(shapes)
    network = made.extract(largest(space, shapes))
    expected = reference(network, inputs, [3, 3], pooling == "class")
    torch.testing.assert_close(network(inputs), expected, rtol=1e-10, atol=1e-10)


def test_a_slice_is_the_textbook_transformer_of_its_sizes() -> None:
    """The width of a head and its scale are the largest ones; all else is sliced."""
    made, inputs = supernet(FINE), images()
    sizes = {"embedding": "8", "depth": "2", "block1/heads": "2", "block2/heads": "2", "block1/mlp": "7"}
    architecture = FINE.canonical(made.choices, Architecture({**largest(FINE), **sizes}))
    expected = reference(made.extract(architecture), inputs, [2, 2], class_token=False)
    torch.testing.assert_close(made(inputs, made.hard(architecture)), expected, rtol=1e-10, atol=1e-10)


def test_the_scale_of_the_scores_stays_that_of_the_largest_width() -> None:
    architecture = SMALL.smallest(SMALL.choices(DIGITS))
    for network in (SMALL.build(architecture, DIGITS), supernet(SMALL).extract(architecture)):
        (attention,) = (module for module in network.modules() if isinstance(module, Attention))
        assert attention.scale == 4**-0.5
        assert attention.query.get_parameter("linear.weight").shape == (1, 3)


def test_a_block_treats_all_tokens_alike() -> None:
    block, rng = Block(12, 3, 4, 20).double(), generator(0)
    x, order = torch.randn(2, 9, 12, generator=rng, dtype=torch.float64), torch.randperm(9, generator=rng)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(block(x[:, order]), block(x))


def test_positions_alone_tell_where_a_patch_is() -> None:
    network, inputs = supernet(SMALL).extract(largest(SMALL)), images()
    moved = torch.cat([inputs[..., 4:], inputs[..., :4]], dim=-1)
    assert not torch.allclose(network(moved), network(inputs))
    with torch.no_grad():
        network.get_parameter("tokens.positions.values").zero_()
    torch.testing.assert_close(network(moved), network(inputs), rtol=1e-10, atol=1e-10)


def test_patches_are_squares_row_by_row() -> None:
    image = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    patches = Patches(2)(image)
    assert patches.shape == (1, 6, 8)
    for place, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        torch.testing.assert_close(patches[0, place], image[0, :, row : row + 2, column : column + 2].flatten())


def test_drop_path_drops_either_part_of_a_block_in_training_alone() -> None:
    network = supernet(SMALL).extract(largest(SMALL))
    set_drop_path(network, 0.5)
    x = torch.ones(64, 5, 12, dtype=torch.float64)
    for name in ("attention", "mlp"):
        part = network.get_submodule(f"blocks.2.{name}")
        plain = part.eval()(x)
        dropped = (part.train()(x) == 0).flatten(1)
        assert torch.equal(dropped.all(dim=1), dropped.any(dim=1))
        assert 0 < int(dropped[:, 0].sum()) < 64 and plain.all()


# Start


def linear_weights(network: nn.Module) -> list[Tensor]:
    return [module.weight.detach() for module in network.modules() if isinstance(module, nn.Linear)]


def test_a_derived_network_starts_by_xaviers_rule_of_its_own_sizes() -> None:
    space = Transformer(embedding=32, depth=2, options=2)
    with seeded(0, 0):
        networks = [space.build(space.smallest(space.choices(DIGITS)), DIGITS), space.network(DIGITS)]
    for network in networks:
        for weight in linear_weights(network):
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.8 * bound < weight.abs().max() <= bound


def test_a_derived_network_starts_with_the_given_deviation() -> None:
    space = Transformer(embedding=64, depth=2, std=0.02, pooling="class")
    with seeded(0, 0):
        network = space.build(space.smallest(space.choices(DIGITS)), DIGITS)
    every = torch.cat([weight.flatten() for weight in linear_weights(network)])
    assert float(every.std()) == pytest.approx(0.02, rel=0.05)
    assert network.get_parameter("tokens.positions.values").std().item() == pytest.approx(0.02, rel=0.2)
    assert network.get_parameter("tokens.first.values").std().item() == pytest.approx(0.02, rel=0.6)
    assert not any(m.bias.any() for m in network.modules() if isinstance(m, nn.Linear))


def test_it_learns_by_momentum_descent() -> None:
    rng = generator(0)
    batch = Batch(torch.randn(32, 1, 8, 8, generator=rng), torch.randint(4, (32,), generator=rng))
    with seeded(0, 0):
        network = Transformer(embedding=16, depth=2).build(largest(Transformer(embedding=16, depth=2)), DIGITS)
    weights = list(network.parameters())
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9)
    losses = []
    for _ in range(60):
        losses.append(loss := F.cross_entropy(network(batch.inputs), batch.targets))
        descend(optimizer, weights, torch.autograd.grad(loss, weights), rate=None, clip=0)
    assert losses[0] > 1.3 and losses[-1] < 0.3


# Laws


@pytest.mark.parametrize(
    ("space", "shapes"),
    [
        (Transformer(embedding=8, heads=2, depth=2, options=2), Shapes((1, 8, 8), 3)),
        (Transformer(embedding=6, heads=2, depth=2, mlp=5, options=0, pooling="class"), Shapes((3, 8, 4), 3)),
        (Transformer(embedding=6, heads=4, width=3, depth=2, fixed="embedding,depth"), Shapes((2, 6, 6), 2)),
    ],
    ids=["grey", "every number", "fixed"],
)
def test_laws(space: Transformer, shapes: Shapes) -> None:
    check_space(space, shapes)


# Pictures


def test_the_picture_is_a_chain_of_the_blocks_that_are_kept() -> None:
    sizes = {"depth": "2", "embedding": "9", "block1/heads": "2", "block1/width": "3", "block2/mlp": "10"}
    architecture = SMALL.canonical(SMALL.choices(DIGITS), Architecture({**largest(SMALL), **sizes}))
    graph = SMALL.graphs(architecture)["transformer"]
    assert {node: graph.nodes[node]["operation"] for node in graph} == {
        "tokens": "9 features",
        "block1": "2 heads x 3, mlp 20",
        "block2": "3 heads x 4, mlp 10",
    }
    assert list(graph.edges) == [("tokens", "block1"), ("block1", "block2")]
    assert "block2 = 3 heads x 4, mlp 10" in text(SMALL.graphs(architecture))
    one = SMALL.smallest(SMALL.choices(DIGITS))
    assert SMALL.graphs(one)["transformer"].nodes["block1"]["operation"] == "1 head x 1, mlp 5"


# Bad input


def test_heads_must_divide_the_embedding_unless_they_have_a_width() -> None:
    with pytest.raises(
        SettingError, match=r"^space\.heads must divide space\.embedding .* 5 does not divide 64; [^.]*\.$"
    ):
        Transformer(heads=5)
    assert Transformer(heads=5, width=7).choices(DIGITS)["block1/width"].options == ("2", "4", "6", "7")


def test_a_patch_must_divide_the_images() -> None:
    with pytest.raises(
        SettingError, match=r"^space\.patch must divide .* 3 does not divide 8 x 12; take one of 1, 2, 4,"
    ):
        Transformer(patch=3).network(Shapes((1, 8, 12), 10))
    assert Transformer(patch=4).choices(Shapes((1, 8, 12), 10))


def test_names_of_what_is_fixed() -> None:
    with pytest.raises(UnknownNameError, match=r"in space\.fixed 'head': did you mean 'heads'"):
        Transformer(fixed="head")
    with pytest.raises(SettingError, match=r"^space\.fixed must leave a choice"):
        Transformer(fixed="mlp,width,heads,depth,embedding")


@pytest.mark.parametrize(
    ("shapes", "came"), [(Shapes((12,), 3), "numbers"), (Shapes((1, 8, 8), 3, vocabulary=7), "tokens")]
)
def test_it_needs_images(shapes: Shapes, came: str) -> None:
    with pytest.raises(DataError, match=f"^Space 'transformer' needs images .* but one input is {came} of shape"):
        Transformer().choices(shapes)
