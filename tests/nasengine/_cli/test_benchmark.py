from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nasengine import benchmark
from nasengine._cli import benchmark as verb
from nasengine.errors import SettingError
from search_spaces.nasbench101 import NASBench101
from tests.nasengine._cli.conftest import Run
from tests.search_spaces.tfrecords import CELLS, CONV3, POOL, Row, chain, trainings, write

Refuse = Callable[..., str]
HASH = CELLS[1].module_hash
SHA = re.compile("[0-9a-f]{64}")
BRANCHED = NASBench101().cell(NASBench101().read("111-01-1 conv3x3-bn-relu,maxpool3x3"))
ROWS = [*trainings([*CELLS, BRANCHED], (36, 108))]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    source = write(tmp_path / "nasbench.tfrecord", ROWS)
    benchmark.convert(source, tmp_path / "table.parquet", space="nasbench101")
    return tmp_path / "table.parquet"


def numbers(line: str) -> list[str]:
    return re.findall(r"[\d.,]+(?= s|%)", line)


def test_convert_and_info(cli: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "nasbench.tfrecord", ROWS)
    code, out, err = cli("benchmark", "convert", source, "--out", "table.parquet")
    assert code == 0 and err == "" and os.listdir() == ["table.parquet"]
    size, origin, architectures, count, validation, test = out.splitlines()
    assert re.fullmatch(r"table\.parquet: \d+\.\d kB", size)
    assert origin.startswith("source: nasbench.tfrecord, ") and origin.endswith(" (not one of the official files)")
    assert SHA.search(origin) and architectures == "architectures: 6 of 423,624"
    assert count == "trainings: 36, 3 of an architecture and budget; 36 and 108 epochs"
    last = ROWS[-3:]
    for line, place, name in ((validation, 2, "validation"), (test, 3, "test")):
        best = sum(row.final[place] for row in last) / 3
        text = "111-01-1 conv3x3-bn-relu,maxpool3x3"
        start = f"best mean {name} accuracy after 108 epochs: {best:.3%}, {text}"
        assert line == f"{start} ({BRANCHED.module_hash})"
    assert cli("benchmark", "info", "table.parquet") == (0, out, "")


def test_the_official_files_are_known_by_their_checksum(cli: Run, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = benchmark.info(table, space="nasbench101")
    monkeypatch.setitem(sys.modules["search_spaces._nasbench101_results"].__dict__["PUBLISHED"], found.sha256, "x.tf")
    assert " (the official x.tf)\n" in cli("benchmark", "info", table).out


@pytest.mark.parametrize(
    "named",
    [
        ("--genotype", "10-1 conv3x3-bn-relu"),
        ("--genotype", str(NASBench101().architecture(chain(CONV3)))),
        ("--hash", HASH),
        ("--matrix", "010001000", "--operations", "input,conv3x3-bn-relu,output"),
        ("--matrix", "0110000000010000", "--operations", "input,maxpool3x3,conv3x3-bn-relu,output"),
    ],
)
def test_query(cli: Run, table: Path, named: tuple[str, ...]) -> None:
    rows = [row for row in ROWS if row.cell == CELLS[1] and row.epochs == 36]
    code, out, err = cli("benchmark", "query", table, *named, "--epochs", 36, "--repeat", 2)
    assert code == 0 and err == ""
    text, module_hash, parameters, which, _, names, halfway, final = out.splitlines()
    assert module_hash == f"hash: {HASH}" and NASBench101().cell(NASBench101().read(text)) == CELLS[1]
    assert parameters == "parameters: 1,000" and which == "36 epochs, training 2"
    assert names.split() == ["training", "time", "train", "accuracy", "validation", "accuracy", "test", "accuracy"]
    for line, values in ((halfway, rows[1].halfway), (final, rows[1].final)):
        assert numbers(line) == [f"{values[0]:,.1f}", *(f"{100 * value:.3f}" for value in values[1:])]
    mean = cli("benchmark", "query", table, *named).out.splitlines()
    rows = [row for row in ROWS if row.cell == CELLS[1] and row.epochs == 108]
    assert mean[3] == "108 epochs, mean of all trainings"
    assert numbers(mean[-1])[3] == f"{100 * sum(row.final[3] for row in rows) / 3:.3f}"


def test_from_python(table: Path) -> None:
    found = benchmark.query(table, space=NASBench101, hash=HASH, epochs=36, repeat=3)
    row = [row for row in ROWS if row.cell == CELLS[1]][2]
    assert found.evaluations["final"]["test_accuracy"] == row.final[3] and found.repeat == 3 and found.hash == HASH
    assert benchmark.query(table, space=NASBench101(), genotype=found.text, epochs=36, repeat="3") == found
    assert NASBench101().cell(found.architecture) == CELLS[1]
    for named in ({}, {"hash": HASH, "genotype": found.text}):
        with pytest.raises(SettingError, match="must be given by one of a genotype and a hash, and not by both"):
            benchmark.query(table, space="nasbench101", **named)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("query TABLE", "An architecture to look up must be given by one of a genotype and a hash, and not by both."),
        (
            f"query TABLE --hash {HASH} --genotype 1",
            "An architecture to look up must be given by one of a genotype and ",
        ),
        (
            f"query TABLE --hash {HASH} --matrix 0100 --operations input,output",
            "An architecture to look up must be given",
        ),
        (
            "query TABLE --matrix 0100",
            "A matrix must come with --operations and without --genotype: give both, or none.",
        ),
        ("query TABLE --operations input,output", "A matrix must come with --operations and without --genotype: give "),
        (
            "query TABLE --genotype 1 --matrix 0100 --operations input,output",
            "A matrix must come with --operations and ",
        ),
        (
            "query TABLE --matrix 01 --operations input,output",
            "The matrix of a cell must be 2 rows of 2 digits 0 and 1 ",
        ),
        (
            "query TABLE --matrix 0100 --operations in,out",
            "A cell must have the form '111-01-1 conv3x3-bn-relu,maxpool",
        ),
        (
            "query TABLE --genotype nonsense",
            "A cell must have the form '111-01-1 conv3x3-bn-relu,maxpool3x3', the rows",
        ),
        ("query TABLE --hash xyz", "A hash must have 32 hexadecimal digits, but got 'xyz'; give that of a cell."),
        (
            f"query TABLE --hash {'0' * 32}",
            "TABLE must have every cell that is asked for, but none of its 6 has the hash",
        ),
        (f"query TABLE --hash {HASH} --epochs 12", "The epochs must be a budget of TABLE, 36, 108, but are 12."),
        (f"query TABLE --hash {HASH} --epochs x", "The epochs must be a whole number, but got 'x'."),
        (f"query TABLE --hash {HASH} --repeat 4", "A repeat must be 1, 2, 3 or mean, but got 4."),
        (f"query TABLE --hash {HASH} --repeat x", "A repeat must be 'mean' or a number from 1, but got 'x'."),
        (
            f"query gone --hash {HASH}",
            "A table of NAS-Bench-101 must be a readable file, but gone is not: No such file ",
        ),
        ("info gone", "A table of NAS-Bench-101 must be a readable file, but gone is not: No such file or directory."),
        (
            "info SOURCE",
            "A table of NAS-Bench-101 must be a whole parquet file, but SOURCE is damaged; convert the off",
        ),
        ("info TABLE --space nowhere", "Unknown search space 'nowhere' (known: darts"),
        ("info TABLE --space darts", "Results must be published in a file of their own to be looked up, but those of "),
        (
            "convert SOURCE --out x --space ofa",
            "Results must be published in a file of their own to be converted, but th",
        ),
        ("convert SOURCE", "Missing option '--out'"),
        ("convert SOURCE --out SOURCE", "A conversion must have another file to write than SOURCE, but both are one; "),
        (
            "convert TABLE --out x.parquet",
            "Record 1 of TABLE must be whole, with its two checksums, but that of its length",
        ),
        (
            "convert gone --out x.parquet",
            "The file of NAS-Bench-101 must be readable, but gone is not: No such file or ",
        ),
        ("turn", "No such command 'turn'."),
    ],
)
def test_bad_input(refuse: Refuse, table: Path, arguments: str, told: str) -> None:
    places = {"TABLE": table, "SOURCE": table.with_name("nasbench.tfrecord")}
    found = refuse("benchmark", *(places.get(word, word) for word in shlex.split(arguments)))
    for word, place in places.items():
        found = found.replace(str(place), word)
    assert found.startswith(told) and os.listdir() == []


def test_a_damaged_file_leaves_nothing(refuse: Refuse, tmp_path: Path) -> None:
    source = write(tmp_path / "nasbench.tfrecord", [*ROWS[:7], Row(CELLS[1], changes={0: chain(POOL).module_hash})])
    assert refuse("benchmark", "convert", source, "--out", "t.parquet").startswith(
        f"Record 8 of {source} must have the "
    )
    assert os.listdir() == []


def test_stopped_by_the_keyboard(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "nasbench.tfrecord", ROWS)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search_spaces._nasbench101_conversion._grouped", stop)
    code, out, err = cli("benchmark", "convert", source, "--out", "t.parquet")
    assert code == 130 and out == "" and os.listdir() == []
    assert err == "nasengine: Stopped, and nothing is kept of it: give the same command again.\n"


PAGES = {
    "convert": ("Make a small table of the official file, once.", verb.EPILOG, "--out --space --help"),
    "query": (
        "Say what is known of an architecture.",
        verb.QUERY_EPILOG,
        "--genotype --hash --matrix --operations --epochs --repeat --space --help",
    ),
    "info": ("Say what a table has.", verb.INFO_EPILOG, "--space --help"),
}


@pytest.mark.parametrize("name", PAGES)
def test_help(cli: Run, name: str) -> None:
    summary, epilog, options = PAGES[name]
    code, out, err = cli("benchmark", name, "-h")
    assert code == 0 and err == "" and f"\n\n  {summary}\n" in out
    assert " ".join(out.split()).endswith(" ".join(epilog.split()))
    table = out[out.index("Options:") : out.rindex("Example:")]
    assert re.findall(r"^  (?:-h, )?(--[\w-]+)", table, flags=re.MULTILINE) == options.split()


def test_without_a_verb(cli: Run) -> None:
    code, out, err = cli("benchmark")
    assert code == 0 and err == "" and out == cli("benchmark", "--help").out
    assert re.findall(r"^  (\w+) +(.*\.)$", out[out.index("Commands:") :], flags=re.MULTILINE) == [
        (name, summary) for name, (summary, _, _) in PAGES.items()
    ]


def test_the_examples_work(cli: Run, tmp_path: Path) -> None:
    write(Path("nasbench_only108.tfrecord"), ROWS)
    for name, (_, epilog, _) in PAGES.items():
        words = shlex.split(epilog.removeprefix("Example: nasengine "))
        assert words[:2] == ["benchmark", name]
        assert cli(*words).code == 0


def test_help_is_light(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom nasengine._cli.main import main\n"
        "assert not any(main(['benchmark', *verb, '-h']) for verb in ([], ['convert'], ['query'], ['info']))\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pyarrow'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
