"""Drawings: what is in the file, that nothing overlaps, and the terminal form word for word."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from nasengine import drawing
from nasengine.errors import ArchitectureError, SettingError

Pair = tuple[str, int]
SEP, SKIP, POOL, DIL = "sep_conv_3x3", "skip_connect", "max_pool_3x3", "dil_conv_3x3"
OPERATIONS = (SEP, SKIP, POOL, DIL, "sep_conv_5x5", "dil_conv_5x5", "avg_pool_3x3")
NORMAL: list[Pair] = [(SEP, 0), (SEP, 1), (SEP, 0), (SEP, 1), (SEP, 1), (SKIP, 0), (SKIP, 0), (DIL, 2)]
REDUCE: list[Pair] = [(POOL, 0), (POOL, 1), (SKIP, 2), (POOL, 1), (POOL, 0), (SKIP, 2), (SKIP, 2), (POOL, 1)]


def cell(pairs: Sequence[Pair]) -> nx.DiGraph[str]:
    graph: nx.DiGraph[str] = nx.DiGraph()
    names = ["c_{k-2}", "c_{k-1}", *map(str, range(len(pairs) // 2))]
    graph.add_nodes_from([*names, "c_{k}"])
    for place, (operation, source) in enumerate(pairs):
        graph.add_edge(names[source], names[2 + place // 2], operation=operation)
    graph.add_edges_from(((name, "c_{k}") for name in names[2:]), operation="")
    return graph


def chain(length: int) -> nx.DiGraph[str]:
    graph: nx.DiGraph[str] = nx.DiGraph()
    for place in range(length):
        graph.add_node(str(place), operation=f"mbconv_{3 + place % 3 * 2}")
    nx.add_path(graph, map(str, range(length)))
    return graph


def dense(nodes: int) -> nx.DiGraph[str]:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(map(str, range(nodes)))
    for source, target in combinations(range(nodes), 2):
        graph.add_edge(str(source), str(target), operation=OPERATIONS[(source + target) % len(OPERATIONS)])
    return graph


def random_cells(seed: int) -> dict[str, nx.DiGraph[str]]:
    generator = random.Random(seed)

    def pairs() -> list[Pair]:
        sources = [source for node in range(4) for source in generator.sample(range(node + 2), 2)]
        return [(generator.choice(OPERATIONS), source) for source in sources]

    return {"normal": cell(pairs()), "reduce": cell(pairs())}


DARTS_V2 = {"normal": cell(NORMAL), "reduce": cell(REDUCE)}
EXAMPLES = [DARTS_V2, *map(random_cells, range(5)), {"chain": chain(3), "long chain": chain(21)}, {"dense": dense(4)}]


def test_svg_is_xml_with_every_name_as_text(tmp_path: Path) -> None:
    drawing.draw(DARTS_V2, tmp_path / "cells.svg", "A < B & C")
    words = {"".join(text.itertext()).strip() for text in ElementTree.parse(tmp_path / "cells.svg").iter()}
    wanted = {"A < B & C", "normal", "reduce", "sep conv 3x3", "skip connect", "max pool 3x3", "dil conv 3x3", "0", "3"}
    assert wanted <= words


def test_png_is_white_and_wide_enough_to_read(tmp_path: Path) -> None:
    drawing.draw(DARTS_V2, tmp_path / "cells.png")
    pixels = imread(tmp_path / "cells.png")
    assert pixels.shape[1] >= 900
    assert (pixels[0] == 1).all()
    assert (pixels[:, 0] == 1).all()
    assert pixels.min() < 0.5


@pytest.mark.parametrize("name", ["cells.svg", "cells.PNG"])
def test_same_cells_give_same_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / "again").mkdir()
    drawing.draw(DARTS_V2, tmp_path / name, "title")
    drawing.draw({"normal": cell(NORMAL), "reduce": cell(REDUCE)}, tmp_path / "again" / name, "title")
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("name", ["cells.pdf", "cells"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=r"must end in \.svg or \.png, but the path is .*cells"):
        drawing.draw(DARTS_V2, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cells", [{}, {"empty": nx.DiGraph()}])
def test_nothing_to_draw_is_refused(tmp_path: Path, cells: Mapping[str, nx.DiGraph[str]]) -> None:
    with pytest.raises(SettingError, match="at least one node"):
        drawing.draw(cells, tmp_path / "cells.svg")


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    graph = chain(3)
    graph.add_edge("2", "0")
    with pytest.raises(ArchitectureError, match="'loop' has one"):
        drawing.draw({"loop": graph}, tmp_path / "cells.svg")


def curve(patch: PathPatch) -> npt.NDArray[np.float64]:
    """Points along an edge, in pixels."""
    vertices = np.asarray(patch.get_transform().transform(patch.get_path().vertices))
    time = np.linspace(0, 1, 40)[:, None]
    pieces = [vertices[start : start + 4] for start in range(0, len(vertices) - 1, 3)]
    weights = [(1 - time) ** 3, 3 * (1 - time) ** 2 * time, 3 * (1 - time) * time**2, time**3]
    return np.concatenate([sum(w * point for w, point in zip(weights, piece, strict=True)) for piece in pieces])


@pytest.mark.parametrize("cells", EXAMPLES)
def test_nothing_overlaps(cells: Mapping[str, nx.DiGraph[str]]) -> None:
    picture = drawing.figure(cells, "title")
    FigureCanvasAgg(picture)
    axes = picture.axes[0]
    boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    texts = [text.get_window_extent() for text in axes.texts]
    page = picture.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert not [pair for pair in combinations(texts, 2) if pair[0].overlaps(pair[1])]
    headings = [text for text in texts if not any(inside(text, box) for box in boxes)]
    assert len(headings) == 1 + len(cells)
    assert not [1 for heading in headings for box in boxes if heading.overlaps(box)]


def inside(inner: Bbox, outer: Bbox) -> bool:
    return bool(outer.x0 < inner.x0 and inner.x1 < outer.x1 and outer.y0 < inner.y0 and inner.y1 < outer.y1)


@pytest.mark.parametrize("cells", EXAMPLES)
def test_edges_avoid_boxes_and_each_other(cells: Mapping[str, nx.DiGraph[str]]) -> None:
    picture = drawing.figure(cells)
    FigureCanvasAgg(picture)
    patches = picture.axes[0].patches
    boxes = [patch.get_window_extent().padded(-1.5) for patch in patches if isinstance(patch, FancyBboxPatch)]
    edges = [curve(patch) for patch in patches if isinstance(patch, PathPatch)][::2]
    kinds = [operation for graph in cells.values() for *_, operation in graph.edges.data("operation", default="")]
    met = [sum(any(box.contains(x, y) for x, y in edge) for box in boxes) for edge in edges]
    assert sorted(met) == sorted(int(operation != "") for operation in kinds)
    for one, other in combinations(edges, 2):
        near = np.linalg.norm(one[:, None] - other[None], axis=-1).min(axis=1) < 1
        shared = np.linalg.norm(np.diff(one, axis=0), axis=1)[near[1:] & near[:-1]].sum()
        assert shared < 20


def test_colours_follow_the_operation_across_cells() -> None:
    boxes = [patch for patch in drawing.figure(DARTS_V2).axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert len({patch.get_edgecolor() for patch in boxes}) == 1 + len({SEP, SKIP, POOL, DIL})


def test_text_of_darts_v2() -> None:
    assert drawing.text(DARTS_V2) == "\n".join(
        [
            "normal(c_{k-2}, c_{k-1})",
            "  0     = sep_conv_3x3(c_{k-2}) + sep_conv_3x3(c_{k-1})",
            "  1     = sep_conv_3x3(c_{k-2}) + sep_conv_3x3(c_{k-1})",
            "  2     = skip_connect(c_{k-2}) + sep_conv_3x3(c_{k-1})",
            "  3     = skip_connect(c_{k-2}) + dil_conv_3x3(0)",
            "  c_{k} = concat(0, 1, 2, 3)",
            "",
            "reduce(c_{k-2}, c_{k-1})",
            "  0     = max_pool_3x3(c_{k-2}) + max_pool_3x3(c_{k-1})",
            "  1     = max_pool_3x3(c_{k-1}) + skip_connect(0)",
            "  2     = max_pool_3x3(c_{k-2}) + skip_connect(0)",
            "  3     = max_pool_3x3(c_{k-1}) + skip_connect(0)",
            "  c_{k} = concat(0, 1, 2, 3)",
        ]
    )


def test_text_aligns_terms_of_unequal_length() -> None:
    pairs = [("none", 0), (SEP, 1), ("sep_conv_11x11", 0), (SKIP, 1)]
    assert drawing.text({"cell": cell(pairs)}).splitlines()[1:3] == [
        "  0     = none(c_{k-2})           + sep_conv_3x3(c_{k-1})",
        "  1     = sep_conv_11x11(c_{k-2}) + skip_connect(c_{k-1})",
    ]


def test_text_of_a_chain_with_operations_on_nodes() -> None:
    wanted = ["net", "  0 = mbconv_3", "  1 = mbconv_5", "  2 = mbconv_7"]
    assert drawing.text({"net": chain(3)}) == "\n".join(wanted)


def test_a_number_alone_is_drawn_with_its_name() -> None:
    graph = nx.DiGraph([("width", "pool")])
    graph.nodes["width"]["operation"], graph.nodes["pool"]["operation"] = "16", "max_pool"
    assert drawing.text({"net": graph}) == "net\n  width = 16\n  pool  = max_pool"
    words = [text.get_text() for text in drawing.figure({"net": graph}).findobj(Text)]
    assert "width 16" in words and "max pool" in words


def test_text_wraps_at_eighty_columns() -> None:
    lines = drawing.text({"dense": dense(9)}).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("(") for line in lines[1:]) == 36
    assert {line[:6] for line in lines[1:] if " = " not in line} == {" " * 6}


def test_changes_of_edges() -> None:
    after = {"normal": cell([(SKIP, 0), *NORMAL[1:6], (SKIP, 1), (DIL, 2)]), "reduce": cell(REDUCE)}
    assert drawing.changes(DARTS_V2, after) == [
        "normal c_{k-2}→0: sep_conv_3x3 → skip_connect",
        "normal c_{k-2}→3: skip_connect → none",
        "normal c_{k-1}→3: none → skip_connect",
    ]
    assert drawing.changes(DARTS_V2, {"normal": cell(NORMAL), "reduce": cell(REDUCE)}) == []


def test_changes_of_nodes_and_of_whole_cells() -> None:
    other = chain(2)
    other.nodes["1"]["operation"] = "zero"
    assert drawing.changes({"a": chain(3)}, {"a": other, "b": chain(1)}) == [
        "a 1: mbconv_5 → zero",
        "a 2: mbconv_7 → none",
        "a 1→2: link → none",
        "b 0: none → mbconv_3",
    ]


def test_a_node_wider_than_a_page_is_whole(tmp_path: Path) -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node("block", operation=", ".join(f"width{place} {place}" for place in range(40)))
    graph.add_node("head", operation="linear")
    graph.add_edge("block", "head")
    drawing.draw({"mine": graph}, tmp_path / "chain.svg")
    root = ElementTree.parse(tmp_path / "chain.svg").getroot()
    width = float(root.attrib["width"].removesuffix("pt"))
    assert width > 1000
