from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from nasengine._cli.rank import EPILOG
from nasengine.config import read_config
from nasengine.heldout import Evaluation
from nasengine.ranking import FILES
from tests.nasengine._cli.conftest import Run
from tests.nasengine.rankings import SPEC, table
from tests.nasengine.runs import contents, record

Refuse = Callable[..., str]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    table(40).to_csv(path, index=False)
    return path


@pytest.fixture
def command(labels: Path) -> tuple[str, ...]:
    return ("rank", "--space", SPEC, "--labels", str(labels))


def test_what_is_told(cli: Run, command: tuple[str, ...]) -> None:
    code, out, err = cli(*command, "--top", "3", "--next", "4")
    assert code == 0 and err == ""
    path = Path("results/five/rank")
    stages, best, rest = out.split("\n\n")
    assert re.sub(r"\d+\.\d s", "_ s", stages).splitlines() == [
        "reading tables: _ s",
        "encoding 283 architectures: _ s",
        "fitting the predictor: _ s",
        "evaluating by 20 fits: _ s",
        "ranking 243 different architectures: _ s",
        "writing files: _ s",
    ]
    title, *rows = best.splitlines()
    assert title.split() == ["rank", "score", "architecture"] and len(rows) == 3
    top = pd.read_csv(path / "ranking.csv")
    for row, (_, entry) in zip(rows, top.iterrows(), strict=True):
        known = "" if pd.isna(entry["known"]) else f"  (label {entry['known']:.4g})"
        guessed = f"{entry['score']:.5g} ± {entry['uncertainty']:.2g}"
        assert row.split()[0] == str(entry["rank"]) and guessed in row and row.endswith(entry["architecture"] + known)
        assert row.index(entry["architecture"]) == title.index("architecture")
    result = record(path)["result"]
    tau = result["measures"]["kendall_tau"]
    lines = rest.splitlines()
    assert lines[:2] == [
        "243 candidates by 40 labels",
        "on labels held out, mean and deviation of 5 draws (k = 1):",
    ]
    assert lines[2].split() == ["kendall", "tau", f"{tau['mean']:.3g}", "±", f"{tau['deviation']:.3g}"]
    assert [line[:14].strip() for line in lines[3:7]] == ["spearman", "pearson", "precision@k", "regret@k"]
    assert lines[7:9] == [result["advice"], "4 to label next, none of them labelled: next.csv"]
    assert re.fullmatch(r"seconds: \d+\.\d", lines[9]) and lines[10] == f"in {path}: run.json, {', '.join(FILES)}"
    assert lines[11:] == [
        f"train the first: nasengine train --space {SPEC} --genotype '{top['architecture'][0]}' --data YOUR_DATA"
    ]
    assert len(pd.read_csv(path / "next.csv")) == 4


def test_the_next_step_works(cli: Run, command: tuple[str, ...]) -> None:
    code, out, _ = cli(*command, "--no-evaluate", "--set", "space.width=4", "--out", "o")
    assert code == 0 and "not judged" in out and "evaluating" not in out
    step = shlex.split(out.splitlines()[-1].partition("nasengine ")[2])
    assert step[-4:] == ["--set", "space.width=4", "--data", "YOUR_DATA"]
    code, out, err = cli(*step[:-1], "sklearn:iris", "--epochs", "1", "--device", "cpu", "--out", "trained")
    assert (code, err) == (0, "") and "parameters: 1" in out
    assert record(Path("trained"))["config"]["space"]["width"] == 4


def test_flags_are_settings(cli: Run, command: tuple[str, ...], labels: Path, tmp_path: Path) -> None:
    some = tmp_path / "some.parquet"
    table(60, seed=1).drop(columns="score").to_parquet(some)
    renamed = pd.read_csv(labels).rename(columns={"score": "good"}).assign(bad=1.0)
    renamed.to_csv(labels, index=False)
    arguments = ("--score", "good", "--candidates", some, "--top", "all", "--seed", "3", "--predictor", "ridge")
    assert cli(*command, *arguments, "--no-evaluate", "--out", "out", "--set", "rank.unlabelled=10").code == 0
    config = read_config(Path("out"), "rank")
    expected = {"top": "all", "seed": 3, "evaluate": False, "unlabelled": 10, "next": 0}
    assert {name: config["rank"][name] for name in expected} == expected and config["predictor"]["name"] == "ridge"
    assert len(pd.read_csv("out/ranking.csv")) == 60
    again = ("rank", "--config", "out", "--labels", labels, "--score", "good", "--candidates", some, "--out", "again")
    assert cli(*again).code == 0
    assert contents(Path("again"))["ranking.parquet"] == contents(Path("out"))["ranking.parquet"]


def test_labels_of_a_collection_need_no_space(cli: Run, small: str) -> None:
    path = Path(__file__).parents[1] / "rankings.py"
    quick = ("--set", "collect.epochs=3", "--set", "space.width=4", "--device", "cpu", "--count", "25")
    assert cli("collect", "--space", f"{path}:Five", "--data", "sklearn:iris", *quick, "--out", "labels").code == 0
    code, out, err = cli("rank", "--labels", "labels", "--no-evaluate", "--out", "out", "--set", "rank.next=2")
    assert (code, err) == (0, "") and out.splitlines()[-1].endswith(" --set space.width=4 --data sklearn:iris")
    assert record(Path("out"))["config"]["shapes"] == {"input": [4], "outputs": 3, "vocabulary": 0}


def test_labels_of_one_network_are_told(cli: Run, command: tuple[str, ...], labels: Path) -> None:
    pd.concat([table(10), table(5)]).to_csv(labels, index=False)
    assert "\n243 candidates by 15 labels of 10 different networks\n" in cli(*command).out


def test_stopped_by_ctrl_c(cli: Run, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(evaluation: Evaluation) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "advice", stop)
        code, _, err = cli(*command, "--out", "out")
    assert code == 130 and err == "nasengine: Stopped, and nothing is kept of it: give the same command again.\n"
    assert contents(Path("out")) == {} and cli(*command, "--out", "out").code == 0


def test_wrong_inputs(refuse: Refuse, cli: Run, command: tuple[str, ...], labels: Path, tmp_path: Path) -> None:
    def wrong(*arguments: object) -> str:
        return refuse(*command, *arguments)

    assert wrong("--top", "0") == "rank.top must be at least 1, but got 0."
    assert wrong("--top", "many") == "rank.top must be a whole number or all, but got 'many'."
    assert wrong("--next", "-1") == "rank.next must be at least 0, but got -1."
    code, _, err = cli(*command, "--next", "204")
    assert code == 2 and err == (
        "nasengine: rank.next must be at most the number of candidates without a label, 203, but is 204; ask for fewer "
        "by --next or give more candidates.\n"
    )
    assert wrong("--predictor", "rigde").startswith("Unknown predictor 'rigde': did you mean 'ridge' (known: ")
    assert wrong("--score", "loss") == (
        f"Labels must have a column 'loss' of scores, but {labels} has architecture, score; name another one by "
        "--score."
    )
    assert wrong("--candidates", tmp_path / "none.csv") == (
        f"A file of candidates must be a readable CSV or parquet file, but of {tmp_path / 'none.csv'} it is said: No "
        "such file or directory; check the path."
    )
    assert refuse("rank") == "A ranking must have labels to fit to, but none are given; name their file by --labels."
    assert refuse("rank", "--labels", labels) == (
        f"The space of the labels must be known, but {labels} does not tell it; name it by --space."
    )
    assert refuse("rank", "--labels", labels, "--space", "nasbench101").startswith(f"Row 1 of {labels} must have an ")
    assert refuse("rank", "--labels", tmp_path / "work", "--space", SPEC).startswith(
        "A file of labels must be a readable CSV"
    )
    assert wrong("--data", "digit").startswith("Unknown data scheme 'digit': did you mean 'digits'")
    (tmp_path / "empty.csv").write_text("")
    assert "must be a whole CSV table" in refuse("rank", "--labels", tmp_path / "empty.csv", "--space", SPEC)
    assert not list(Path().iterdir())
    assert cli(*command, "--out", "out", "--no-evaluate").code == 0
    before = contents(Path("out"))
    assert wrong("--out", "out") == (
        "The run directory out must be new or empty, but holds a run that is finished; give another --out."
    )
    assert refuse("collect", "--config", "out").startswith("out must be of a run of 'nasengine collect', but is of one")
    assert refuse("rank", "--resume").startswith("No such option: --resume")
    assert contents(Path("out")) == before


def test_the_example_is_a_command(cli: Run) -> None:
    example = re.search(r"nasengine (.*)", EPILOG)
    assert example is not None
    code, _, err = cli(*shlex.split(example[1]))
    assert code == 2 and err.startswith(
        "nasengine: A file of labels must be a readable CSV or parquet file, but of lab"
    )
