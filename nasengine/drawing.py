"""Searched cells as pictures (SVG, PNG) and as terminal text.

A cell is a directed acyclic graph of names in topological order; edges or nodes have the attribute `operation`.
In the picture every label and every bend of a long edge owns a slot of its column, so that nothing can overlap.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import networkx as nx

from nasengine.errors import ArchitectureError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["changes", "draw", "figure", "text"]

# Okabe and Ito's palette without its yellow and black, then four of Paul Tol's that stay apart from them.
_PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#882255", "#332288", "#999933", "#117733"),
)
_INK, _GREY, _PALE, _DARK = "#1F2933", "#9AA5B1", "#EDF1F5", "#36475A"
_COLUMNS = 80
_PAGE, _NARROWEST, _MARGIN = 648.0, 420.0, 16.0  # points; a page of 9 inches is 900 pixels at 100 dpi
_GAP_LEAST, _GAP_MOST, _PORT = 22.0, 64.0, 7.0
_LABEL_SIZE, _NODE_SIZE, _CELL_SIZE, _TITLE_SIZE = 8.5, 10.5, 10.5, 13.0
_HEAD, _BETWEEN, _ARROW = 24.0, 14.0, 5.5

Cells = Mapping[str, "nx.DiGraph[str]"]


@dataclass
class _Slot:
    """A place in a column: a node, the label of an edge, or (without text) a bend of a long edge."""

    rank: int
    text: str = ""
    operation: str = ""
    width: float = 0.0
    height: float = 0.0
    node: bool = False
    inner: bool = False
    x: float = 0.0
    y: float = 0.0


@dataclass
class _Route:
    """An edge through the columns; `ports` are its heights at its stops, measured from the middle of the slot."""

    operation: str
    stops: list[int]
    ports: list[float]


@dataclass
class _Panel:
    """One cell, laid out in points with y growing downwards; `gaps` are the wanted distances between columns."""

    name: str
    slots: list[_Slot]
    routes: list[_Route]
    columns: list[list[int]]
    widths: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    height: float = 0.0


def draw(cells: Cells, path: Path, title: str = "") -> None:
    """Write the cells as a picture, .svg or .png by the suffix of `path`; same cells, same bytes."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise SettingError(f"A drawing must end in .svg or .png, but the path is {str(path)!r}; change its suffix.")
    picture = figure(cells, title)
    from matplotlib import style

    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "nasengine"}]):
        picture.savefig(path, format=kind, dpi=200, metadata=metadata)


def figure(cells: Cells, title: str = "") -> Figure:
    """The picture as a matplotlib figure that belongs to no global state, one panel per cell."""
    if not cells or not all(map(len, cells.values())):
        raise SettingError("A drawing needs cells with at least one node each, but one is empty or there is none.")
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Pictures need matplotlib; install it with `pip install matplotlib`.") from error
    with style.context("default"):
        panels = [_lay_out(name, graph) for name, graph in cells.items()]
        page = _page(panels)
        for panel in panels:
            _place(panel, page)
        top = _MARGIN + (_HEAD if title else 0.0)
        width, height = page + 2 * _MARGIN, top + sum(_HEAD + panel.height + _BETWEEN for panel in panels)
        picture = Figure(figsize=(width / 72, height / 72), dpi=100, facecolor="white")
        axes = picture.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        axes.text(_MARGIN, _MARGIN, title, size=_TITLE_SIZE, weight="bold", color=_INK, va="top", parse_math=False)
        names = set().union(*(_operations(graph).values() for graph in cells.values())) - {""}
        colours = {name: _PALETTE[place % len(_PALETTE)] for place, name in enumerate(sorted(names))} | {"": _GREY}
        for panel in panels:
            _paint(axes, panel, top, colours)
            top += _HEAD + panel.height + _BETWEEN
    return picture


def _width(words: str, size: float) -> float:
    """The width of a text in points, free of any screen's resolution."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, *_ = text_to_path.get_text_width_height_descent(words, FontProperties(size=size), words.startswith("$"))
    return float(width)


def _operations(graph: nx.DiGraph[str]) -> dict[tuple[str, str], str]:
    """The operation of every edge, and under ("", node) that of every node; "" where there is none."""
    edges: dict[tuple[str, str], str] = {edge: graph.edges[edge].get("operation", "") for edge in graph.edges}
    return edges | {("", node): graph.nodes[node].get("operation", "") for node in graph}


def _pretty(name: str) -> str:
    """A node name with an index in braces as mathtext, any other name as it is."""
    mathematics = re.fullmatch(r"[A-Za-z]+_\{[A-Za-z0-9+-]+\}", name)
    return f"${name.replace('-', '{-}')}$" if mathematics else name.replace("$", "")


def _lay_out(name: str, graph: nx.DiGraph[str]) -> _Panel:
    """Columns of slots: nodes at their longest path from the inputs, labels of operations between."""
    if not nx.is_directed_acyclic_graph(graph):
        raise ArchitectureError(f"A cell must have no cycle, but {name!r} has one; remove the edge that closes it.")
    layers = {node: layer for layer, nodes in enumerate(nx.topological_generations(graph)) for node in nodes}
    operations, slots, routes = _operations(graph), list[_Slot](), list[_Route]()
    edges = sorted(graph.edges, key=lambda edge: layers[edge[1]] - layers[edge[0]])
    load = [0] * (max(layers.values()) + 1)
    gaps: dict[tuple[str, str], int] = {}
    for edge in filter(operations.__getitem__, edges):
        gaps[edge] = min(range(layers[edge[0]], layers[edge[1]]), key=lambda gap: (load[gap], -gap))
        load[gaps[edge]] += 1
    ranks = [layer + sum(count > 0 for count in load[:layer]) for layer in range(len(load))]
    for node in graph:
        operation, ports = operations["", node], max(len(graph.pred[node]), len(graph.succ[node]))
        words = f"{node} {operation}" if operation.isdigit() else operation.replace("_", " ") or _pretty(node)
        size = max(26.0, _width(words, _NODE_SIZE) + 14), max(26.0, _PORT * ports + 8)
        inner = bool(graph.pred[node] and graph.succ[node])
        slots.append(_Slot(ranks[layers[node]], words, operation, *size, node=True, inner=inner))
    index = {node: place for place, node in enumerate(graph)}
    for source, target in edges:
        operation, first = operations[source, target], len(slots)
        slots += [_Slot(rank) for rank in range(ranks[layers[source]] + 1, ranks[layers[target]])]
        if operation:
            slot = slots[first + ranks[gaps[source, target]] - ranks[layers[source]]]
            slot.text, slot.operation, slot.height = operation.replace("_", " "), operation, 18.0
            slot.width = _width(slot.text, _LABEL_SIZE) + 12
        stops = [index[source], *range(first, len(slots)), index[target]]
        routes.append(_Route(operation, stops, [0.0] * len(stops)))
    columns = [[place for place, slot in enumerate(slots) if slot.rank == rank] for rank in range(ranks[-1] + 1)]
    panel = _Panel(name, slots, routes, columns)
    _order(panel)
    _assign_ports(panel)
    _align(panel)
    return panel


def _order(panel: _Panel, starts: int = 24, rounds: int = 4) -> None:
    """Order the slots of every column for few crossings, then short edges: barycentres from several starts."""
    before, after = [list[int]() for _ in panel.slots], [list[int]() for _ in panel.slots]
    for left, right in (pair for route in panel.routes for pair in pairwise(route.stops)):
        after[left].append(right)
        before[right].append(left)
    ranks = range(len(panel.columns))
    sweep = [*((rank, rank - 1, before) for rank in ranks[1:]), *((rank, rank + 1, after) for rank in ranks[-2::-1])]
    generator = random.Random(0)
    best, best_cost = panel.columns, (math.inf, math.inf)
    for start in range(starts):
        columns = [generator.sample(column, len(column)) if start else list(column) for column in panel.columns]
        for _ in range(rounds):
            for rank, fixed, links in sweep:
                _sort_column(columns[rank], columns[fixed], links)
            for candidate in ([list(column) for column in columns], [column[::-1] for column in columns]):
                if (cost := _cost(panel, candidate, after)) < best_cost:
                    best, best_cost = candidate, cost
    panel.columns = best


def _sort_column(column: list[int], fixed: Sequence[int], links: Sequence[Sequence[int]]) -> None:
    """Barycentres first, then neighbours change places where that alone saves crossings."""
    place = {slot: position / max(1, len(fixed) - 1) for position, slot in enumerate(fixed)}
    own = {slot: position / max(1, len(column) - 1) for position, slot in enumerate(column)}
    near = {slot: [place[other] for other in links[slot]] or [own[slot]] for slot in column}
    column.sort(key=lambda slot: sum(near[slot]) / len(near[slot]))
    for upper, (first, second) in enumerate(pairwise(column)):
        if sum((a > b) - (a < b) for a in near[first] for b in near[second]) > 0:
            column[upper : upper + 2] = [second, first]


def _cost(panel: _Panel, columns: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Crossings; then the climbs of all edges with every column centred, and nodes out of their given order."""
    place = {slot: row - (len(column) - 1) / 2 for column in columns for row, slot in enumerate(column)}
    crossings, length = 0, 0.0
    for column in columns:
        ends = [end for slot in column for end in sorted(place[other] for other in after[slot])]
        crossings += sum(later < end for start, end in enumerate(ends) for later in ends[start + 1 :])
        length += sum(abs(place[slot] - place[other]) for slot in column for other in after[slot])
        nodes = [slot for slot in column if panel.slots[slot].node]
        length += sum(later < node for start, node in enumerate(nodes) for later in nodes[start + 1 :])
    return crossings, length


def _assign_ports(panel: _Panel) -> None:
    """Spread the ends of the edges over the sides of their nodes, in the order of where they come from."""
    place = {slot: row for column in panel.columns for row, slot in enumerate(column)}
    for end, beside in ((0, 1), (-1, -2)):
        groups: dict[int, list[_Route]] = {}
        for route in sorted(panel.routes, key=lambda route: place[route.stops[beside]]):
            groups.setdefault(route.stops[end], []).append(route)
        for group in groups.values():
            for row, route in enumerate(group):
                route.ports[end] = (row - (len(group) - 1) / 2) * _PORT


def _align(panel: _Panel, sweeps: int = 600) -> None:
    """Heights that make edges straight: least squares, then nearly straight parts weigh more, against small kinks."""
    pulls: list[list[tuple[_Slot, float, float]]] = [[] for _ in panel.slots]
    for route in panel.routes:
        for (left, out), (right, into) in pairwise(zip(route.stops, route.ports, strict=True)):
            weight = 8.0 if not (panel.slots[left].node or panel.slots[right].node) else 1.0
            pulls[left].append((panel.slots[right], into - out, weight))
            pulls[right].append((panel.slots[left], out - into, weight))
    for sweep in range(sweeps):
        slack = math.inf if sweep < sweeps / 3 else 0.5
        for column in panel.columns:
            wanted = []
            for index in column:
                total, mass = 0.0, 1e-3
                for other, shift, weight in pulls[index]:
                    goal = other.y + shift
                    weight /= 1 + abs(goal - panel.slots[index].y) / slack
                    total, mass = total + goal * weight, mass + weight
                wanted.append((total / mass, mass))
            _spread([panel.slots[index] for index in column], wanted)
    top = min(slot.y - slot.height / 2 for slot in panel.slots)
    for slot in panel.slots:
        slot.y -= top
    panel.height = max(slot.y + slot.height / 2 for slot in panel.slots)


def _spread(column: Sequence[_Slot], wanted: Sequence[tuple[float, float]]) -> None:
    """Move to the nearest heights (height, weight) that keep order and distances: isotonic regression."""
    shifts = [0.0]
    for upper, lower in pairwise(column):
        pad = 20.0 if upper.node and lower.node else 7.0 if upper.text and lower.text else 10.0
        shifts.append(shifts[-1] + (upper.height + lower.height) / 2 + pad)
    blocks: list[tuple[float, float, int]] = []
    for (height, mass), shift in zip(wanted, shifts, strict=True):
        level, count = height - shift, 1
        while blocks and blocks[-1][0] >= level:
            above, more, members = blocks.pop()
            level, mass, count = (above * more + level * mass) / (more + mass), more + mass, members + count
        blocks.append((level, mass, count))
    levels = [level for level, _, count in blocks for _ in range(count)]
    for slot, level, shift in zip(column, levels, shifts, strict=True):
        slot.y = level + shift


def _page(panels: Sequence[_Panel]) -> float:
    """The common width: as wide as comfortable up to a page, wider only where not even the least gaps fit."""
    for panel in panels:
        panel.widths = [max(panel.slots[slot].width for slot in column) for column in panel.columns]
        panel.gaps = [_GAP_LEAST] * (len(panel.columns) - 1)
        for left, right in (pair for route in panel.routes for pair in pairwise(route.stops)):
            gap, climb = panel.slots[left].rank, abs(panel.slots[left].y - panel.slots[right].y)
            panel.gaps[gap] = max(panel.gaps[gap], min(_GAP_MOST, 0.7 * climb))
    comfortable = max(sum(panel.widths) + sum(panel.gaps) for panel in panels)
    least = [sum(p.widths) + _GAP_LEAST * len(p.gaps) for p in panels if len(p.slots) > len(p.columns)]
    return max(_NARROWEST, min(max(_PAGE, *least, *(max(p.widths) for p in panels)), comfortable))


def _place(panel: _Panel, page: float) -> None:
    """Set the columns from left to right: gaps stretch to fill the page, and a long chain goes on below."""
    spare, wanted, least = page - sum(panel.widths), sum(panel.gaps), _GAP_LEAST * len(panel.gaps)
    stretch = min(5 / 3, max(0.0, spare - least) / max(1.0, wanted - least))
    gaps = [_GAP_LEAST + (gap - _GAP_LEAST) * stretch for gap in panel.gaps]
    left, drop = _MARGIN + max(0.0, spare - sum(gaps)) / 2, 0.0
    x = left
    for column, width, gap in zip(panel.columns, panel.widths, [*gaps, 0.0], strict=False):
        if x + width > _MARGIN + page + 1:
            x, drop = left, drop + panel.height + 18
        for slot in column:
            panel.slots[slot].x = x + width / 2
            panel.slots[slot].y += drop
        x += width + gap
    panel.height += drop


def _paint(axes: Axes, panel: _Panel, top: float, colours: Mapping[str, str]) -> None:
    from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
    from matplotlib.path import Path as Curve

    axes.text(_MARGIN, top, panel.name, size=_CELL_SIZE, color=_DARK, weight="bold", va="top", parse_math=False)
    for slot in panel.slots:
        slot.y += top + _HEAD
    for layer, route in enumerate(panel.routes):
        points, colour = _curve(panel, route), colours[route.operation]
        line = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * (len(points) - 1)])
        for ink, width in (("white", 4.5), (colour, 1.5)):  # the white rim shows which of two crossing edges is above
            axes.add_patch(PathPatch(line, fill=False, edgecolor=ink, linewidth=width, zorder=1 + layer / 1000))
        x, y = points[-1]
        head = [(x + _ARROW, y), (x - 1, y - _ARROW / 2), (x - 1, y + _ARROW / 2)]
        axes.add_patch(Polygon(head, facecolor=colour, linewidth=0, zorder=3))
    for slot in filter(lambda slot: slot.text, panel.slots):
        plain, size = slot.node and not slot.operation, _NODE_SIZE if slot.node else _LABEL_SIZE
        fill, ink = (_DARK, "white") if plain and slot.inner else (_PALE if plain else "white", _INK)
        rim, shape = _DARK if plain else colours[slot.operation], f"round,pad=0,rounding_size={6 if slot.node else 9}"
        corner = (slot.x - slot.width / 2, slot.y - slot.height / 2)
        axes.add_patch(FancyBboxPatch(corner, slot.width, slot.height, shape, fc=fill, ec=rim, zorder=4))
        words = axes.text(slot.x, slot.y, slot.text, size=size, color=ink, parse_math=slot.text[0] == "$", zorder=5)
        words.set(ha="center", va="center_baseline")


def _curve(panel: _Panel, route: _Route) -> list[tuple[float, float]]:
    """Cubic pieces, level through every column and bent only between, so that an edge meets no node and no label."""
    points: list[tuple[float, float]] = []
    for stop, port in zip(route.stops, route.ports, strict=True):
        slot, y, half = panel.slots[stop], panel.slots[stop].y + port, panel.widths[panel.slots[stop].rank] / 2
        left, right = slot.x - half, slot.x + half
        if stop == route.stops[-1]:
            left, right = left - _ARROW, slot.x - slot.width / 2 - _ARROW
        x, level = points[-1] if points else (0.0, y)
        if not points:
            points.append((slot.x + slot.width / 2, y))
        elif left > x:
            points += [((x + left) / 2, level), ((x + left) / 2, y), (left, y)]
        else:  # the next row of a folded chain
            middle, bow = (level + y) / 2, 10.0
            points += [(x + bow, level), (x + bow, middle), (x, middle), *[(left, middle)] * 3]
            points += [(left - bow, middle), (left - bow, y), (left, y)]
        points += [(right, y)] * 3
    return points


def text(cells: Cells) -> str:
    """Lines of at most 80 columns, one a node: `0 = skip_connect(a) + max_pool_3x3(b)`, or in a chain `0 = mb3`."""
    return "\n\n".join("\n".join(_lines(name, graph)) for name, graph in cells.items())


def _lines(name: str, graph: nx.DiGraph[str]) -> list[str]:
    """A header with the inputs, then the other nodes; terms of sums stand in columns where the width allows."""
    operations, rows = _operations(graph), dict[str, list[str]]()
    chain = all(operations["", node] for node in graph) and list(graph.edges) == list(pairwise(graph))
    for node in graph:
        sources = [source for source in graph if source in graph.pred[node] and not chain]
        terms = [f"{kind}({source})" if (kind := operations[source, node]) else source for source in sources]
        call = operations["", node] or ("concat" if len(sources) > 1 and terms == sources else "")
        rows[node] = [f"{call}({', '.join(terms)})" if terms else call] if call else terms
    inputs = [node for node in graph if not rows[node]]
    margin = max((len(node) for node in graph if rows[node]), default=0)
    widths = [max(map(len, terms)) for terms in zip_longest(*(r for r in rows.values() if len(r) > 1), fillvalue="")]
    aligned = margin + sum(widths) + 3 * len(widths) + 2 <= _COLUMNS
    lines = [f"{name}({', '.join(inputs)})" if inputs else name]
    for node, terms in rows.items():
        if terms:
            if aligned and len(terms) > 1:
                terms = [term.ljust(width) for term, width in zip(terms, widths, strict=False)]
            line = f"  {node.ljust(margin)} = {' + '.join(terms)}".rstrip()
            indent = " " * (margin + 5)
            lines += wrap(line, _COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines


def changes(before: Cells, after: Cells) -> list[str]:
    """The edges and nodes whose operation differs: `normal 0→2: sep_conv_3x3 → skip_connect`.

    `none` stands for an edge (or the operation of a node) that one side lacks, `link` for an edge without operation.
    """
    lines = []
    for name in dict.fromkeys([*before, *after]):
        graphs = [cells[name] for cells in (before, after) if name in cells]
        order = {node: place for place, node in enumerate(dict.fromkeys(node for graph in graphs for node in graph))}
        sides = [_operations(cells[name]) if name in cells else {} for cells in (before, after)]
        for edge in sorted(sides[0] | sides[1], key=lambda edge: (order[edge[1]], order.get(edge[0], -1))):
            old, new = (side.get(edge, "none") or ("link" if edge[0] else "none") for side in sides)
            if old != new:
                lines.append(f"{name} {'→'.join(filter(None, edge))}: {old} → {new}")
    return lines
