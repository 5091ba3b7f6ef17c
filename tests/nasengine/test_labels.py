"""Tables of labels: what is read, and every way in which they are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nasengine.errors import DataError
from nasengine.labels import Labels, read_architectures, read_scores, read_source
from search_spaces.nasbench101 import NASBench101
from tests.nasengine.rankings import SHAPES, Five, table

FIRST = "layer/0=linear layer/1=linear layer/2=linear layer/3=linear layer/4=linear"


def read(source: pd.DataFrame | Path, column: str | None = None) -> Labels:
    found = read_source(source, "labels")
    return read_scores(Five(), found, column, read_architectures(Five(), SHAPES, found))


@pytest.mark.parametrize("form", ["csv", "parquet", "memory"])
def test_a_table_in_any_form(form: str, tmp_path: Path) -> None:
    labels, path = table(30), tmp_path / f"labels.{form}"
    if form == "csv":
        labels.to_csv(path, index=False)
    elif form == "parquet":
        labels.to_parquet(path, index=False)
    found = read(labels if form == "memory" else path)
    assert list(map(str, found.architectures)) == labels["architecture"].tolist()
    assert found.scores.tolist() == labels["score"].tolist() and found.column == "score"


def test_parquet_under_another_name(tmp_path: Path) -> None:
    table(30).to_parquet(tmp_path / "labels.data")
    assert len(read(tmp_path / "labels.data").scores) == 30


def test_digits_of_a_matrix_keep_their_zeros(tmp_path: Path) -> None:
    text = 'matrix,operations,loss\n010001000,"input,conv3x3-bn-relu,output",0.5\n0100,"input,output",0.25\n'
    (tmp_path / "labels.csv").write_text(text)
    source = read_source(tmp_path / "labels.csv", "labels")
    found = read_scores(NASBench101(), source, None, read_architectures(NASBench101(), SHAPES, source))
    assert [NASBench101().write(a) for a in found.architectures] == ["10-1 conv3x3-bn-relu", "1"]
    assert found.column == "loss" and found.scores.tolist() == [0.5, 0.25]


def test_digits_of_an_official_matrix_are_no_scores() -> None:
    kinds = ["input,conv3x3-bn-relu,output", "input,output"]
    cells = {"adjacency": ["010001000", "0100"], "n_vertices": [3, 2], "operations": kinds}
    labels = pd.DataFrame({**cells, "parameters": [9, 8], "accuracy": [0.5, 0.25]})
    source = read_source(labels, "labels")
    found = read_scores(NASBench101(), source, None, read_architectures(NASBench101(), SHAPES, source))
    assert found.column == "accuracy" and found.scores.tolist() == [0.5, 0.25]


def test_the_only_column_of_numbers() -> None:
    labels = table(5).rename(columns={"score": "accuracy"}).assign(note="x", good=True, epochs=3, seconds=1.5)
    assert read(labels).column == "accuracy"
    assert read(labels.assign(score=1.0), "accuracy").scores.tolist() == labels["accuracy"].tolist()
    assert read(labels.assign(accuracy=labels["accuracy"].map(str))).column == "accuracy"


OF, ROW = "the table of labels", "of the table of labels has"
CHANCE = "leave the row out, or give a failed training the score of chance."
NUMBERS = "Labels must have a column 'score', or one column of numbers, but the table of labels has"


@pytest.mark.parametrize(
    ("labels", "column", "told"),
    [
        (
            table(5).assign(score=None, a=1, b=2),
            "none",
            f"Labels must have a column 'none' of scores, but {OF} has architecture, score, a, b; name another one "
            "by --score.",
        ),
        (table(5).drop(columns="score"), None, f"{NUMBERS} no column of numbers; name it by --score."),
        (
            table(5).rename(columns={"score": "a"}).assign(b=2),
            None,
            f"{NUMBERS} several columns of numbers: a, b; name it by --score.",
        ),
        (
            table(5)[["architecture", "score", "score"]],
            None,
            f"A file of labels must have each column once, but {OF} has 'score' twice; rename or drop one.",
        ),
        (
            table(2)[["architecture", "architecture", "score"]],
            None,
            f"A file of labels must have each column once, but {OF} has 'architecture' twice; rename or drop one.",
        ),
        (
            table(2).assign(score=pd.to_datetime(["2020-01-01", "2021-01-01"])),
            None,
            f"row 1 {ROW} '2020-01-01 00:00:00' in the column 'score'; {CHANCE}",
        ),
        (table(2).assign(score=[1j, 2j]), None, f"row 1 {ROW} '1j' in the column 'score'; {CHANCE}"),
        (
            table(2).assign(score=[0.5, "good"]),
            None,
            f"A score must be a finite number, but row 2 {ROW} 'good' in the column 'score'; {CHANCE}",
        ),
        (table(2).assign(score=["", "1"]), None, f"row 1 {ROW} '' in the column 'score'; {CHANCE}"),
        (table(3).assign(score=[1, 2, np.inf]), None, f"row 3 {ROW} 'inf' in the column 'score'; {CHANCE}"),
        (table(3).assign(score=[1, np.nan, 3]), None, f"row 2 {ROW} 'nan' in the column 'score'; {CHANCE}"),
        (table(3).assign(score=[1, 2, True]), None, f"row 3 {ROW} 'True' in the column 'score'; {CHANCE}"),
        (
            table(2).assign(score=[[0.1, 0.2], [0.3, 0.4]]),
            None,
            f"A score must be one number, but row 1 {ROW} several in the column 'score'; rank by one of them"
            " at a time.",
        ),
        (
            table(1),
            None,
            f"A predictor must have at least two labels to be fitted, but {OF} has 1; label more architectures.",
        ),
        (
            table(5).assign(rank=1, uncertainty=0.1),
            None,
            f"Labels must have true scores, but {OF} is of 'nasengine rank', whose column 'score' is guessed; name the "
            "column of the true ones by --score.",
        ),
        (table(0), None, f"A file of labels must have one row an architecture, but {OF} has none; add some rows."),
        (table(2).assign(architecture=[FIRST, "layer/0"]), None, f"Row 2 of {OF} must have an architecture: "),
        (
            table(2).assign(architecture=[FIRST, FIRST.replace("0=linear", "0=conv")]),
            None,
            f"Row 2 of {OF} must be of space 'five': Choice 'layer/0' must be one of linear, relu, skip, but got "
            "'conv'.",
        ),
        (table(2).assign(architecture=[FIRST, "kernel=3"]), None, f"Row 2 of {OF} must be of space 'five': The "),
    ],
)
def test_wrong_tables(labels: pd.DataFrame, column: str | None, told: str) -> None:
    with pytest.raises(DataError) as error:
        read(labels, column)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_columns_in_memory_are_texts_like_those_of_files() -> None:
    assert read(table(3).rename(columns={"score": 0})).column == "0"
    with pytest.raises(DataError, match=r"^A table of labels must be a pandas.DataFrame or the .*, but is a Series; "):
        read_source(table(3)["score"], "labels")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("labels.csv", b"", "must be a whole CSV table with the names of its columns, but"),
        ("labels.csv", b"architecture,score\n", "must have one row an architecture, but"),
        ("labels.csv", b"architecture,score\na,b,c,d\ne\n\xff\xfe", "must be a whole CSV table"),
        ("labels.csv", b"\x80\x81\n\x82", "must be a whole CSV table"),
        ("labels.csv", b"architecture,score,score\na,1,2\n", "must have each column once, but .* has 'score' twice"),
        ("labels.csv", b"PAR1 but no more", "must be a whole parquet table"),
        ("labels.parquet", b"architecture,score\n", "must be a whole parquet table"),
        ("labels.csv", None, "must be a readable CSV or parquet file, but"),
    ],
)
def test_wrong_files(name: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"A file of labels {told}.*") as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_torn_parquet_file(tmp_path: Path) -> None:
    table(30).to_parquet(tmp_path / "labels.parquet")
    whole = (tmp_path / "labels.parquet").read_bytes()
    (tmp_path / "labels.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="must be a whole parquet table"):
        read(tmp_path / "labels.parquet")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"matrix": "010101000", "operations": "input,conv3x3-bn-relu,output"}, "a cell: "),
        ({"hash": "0" * 32}, "the hash of a cell, 32 hexadecimal digits in small letters, but has '0000"),
    ],
)
def test_cells_that_are_none(row: dict[str, str], told: str) -> None:
    source = read_source(pd.DataFrame([{**row, "score": 1.0}]), "labels")
    with pytest.raises(DataError, match=f"Row 1 of the table of labels must have {told}"):
        read_architectures(NASBench101(), SHAPES, source)
