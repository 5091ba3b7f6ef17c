from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nasengine
from nasengine._cli import (
    benchmark,
    collect,
    compare,
    export,
    front,
    profile,
    propose,
    rank,
    report,
    search,
    show,
    train,
)
from nasengine._cli import list as list_
from nasengine._cli import run as run_
from nasengine.config import CollectSettings, SearchSettings, TrainSettings
from nasengine.task import DataSettings
from tests.nasengine._cli.conftest import Run

PAGES = {
    "run": (
        "Usage: nasengine run [OPTIONS]",
        "Go from a question to a tested, exported network.",
        run_.EPILOG,
        "--space --algo --data --epochs --candidates --labels --score --predictor --train --seeds --train-epochs "
        "--against --export --max-params --max-flops --max-latency --max-memory --seed --device --precision --set "
        "--config --out --resume --workers --dry-run --help",
    ),
    "search": (
        "Usage: nasengine search [OPTIONS]",
        "Search an architecture for your data.",
        search.EPILOG,
        "--space --algo --data --epochs --batch-size --batch_size --train-portion --benchmark --max-params --max-flops "
        "--max-latency --max-memory --step-memory --seed --device --precision --set --config --out --resume "
        "--dry-run --help",
    ),
    "train": (
        "Usage: nasengine train [OPTIONS] [RUN]",
        "Train the found network from scratch, and test it once.",
        train.EPILOG,
        "--genotype --architecture --space --inherit --data --epochs --batch-size --batch_size --seed --device "
        "--precision --set --config --out --resume --dry-run --help",
    ),
    "propose": (
        "Usage: nasengine propose [OPTIONS] {RUN}",
        "Take candidates from a finished search.",
        propose.EPILOG,
        "--count --set --out --help",
    ),
    "collect": (
        "Usage: nasengine collect [OPTIONS]",
        "Label architectures, to fit predictors to their scores.",
        collect.EPILOG,
        "--space --data --count --architectures --inherit --epochs --batch-size --batch_size --train-portion --seed "
        "--device --set --config --out --resume --workers --dry-run --help",
    ),
    "rank": (
        "Usage: nasengine rank [OPTIONS]",
        "Rank a space by a predictor that is fitted to a few labels.",
        rank.EPILOG,
        "--space --labels --score --predictor --candidates --top --next --no-evaluate --data --seed --set --config "
        "--out --help",
    ),
    "front": (
        "Usage: nasengine front [OPTIONS] [RANKING]",
        "Search the best trade-offs between guessed score and cost.",
        front.EPILOG,
        "--against --population --generations --max-params --max-flops --max-latency --max-memory --seed --set "
        "--config --out --help",
    ),
    "compare": (
        "Usage: nasengine compare [OPTIONS]",
        "Compare algorithms at equal cost, over several seeds.",
        compare.EPILOG,
        "--space --algo --data --seeds --budget --train-epochs --seed --device --precision --set --config --out "
        "--resume --workers --dry-run --help",
    ),
    "export": (
        "Usage: nasengine export [OPTIONS] {RUN}",
        "Write the trained network for other programs.",
        export.EPILOG,
        "--format --data --out --help",
    ),
    "report": (
        "Usage: nasengine report [OPTIONS] [RUN]...",
        "Make one HTML file of what runs found, to look at and to send.",
        report.EPILOG,
        "--out --help",
    ),
    "profile": (
        "Usage: nasengine profile [OPTIONS] [RUN]",
        "Measure latency and memory of networks on your device.",
        profile.EPILOG,
        "--space --architecture --data --count --device --runtime --batch-size --batch_size --threads --set --help",
    ),
    "show": (
        "Usage: nasengine show [OPTIONS] [RUN]",
        "Draw the cells of a run, and print the genotype.",
        show.EPILOG,
        "--genotype --space --out --help",
    ),
    "list": (
        "Usage: nasengine list [OPTIONS]",
        "Name spaces, algorithms, data and all settings.",
        list_.EPILOG,
        "--help",
    ),
    "benchmark": (
        "Usage: nasengine benchmark [OPTIONS] COMMAND [ARGS]...",
        "Convert and look up the published results of a space.",
        benchmark.EPILOG,
        "--help",
    ),
}


@pytest.mark.parametrize("verb", PAGES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_verb(cli: Run, verb: str, flag: str) -> None:
    usage, summary, epilog, options = PAGES[verb]
    code, out, err = cli(verb, flag)
    assert code == 0 and err == ""
    assert out.startswith(f"{usage}\n\n  {summary}\n")
    assert " ".join(out.split()).endswith(" ".join(epilog.split()))
    table = out[out.index("Options:") : out.rindex("Example:")]
    listed = re.findall(r"^  (?:-h, )?(--[\w-]+)(?:, (--[\w-]+))?", table, flags=re.MULTILINE)
    assert [name for names in listed for name in names if name] == options.split()


@pytest.mark.parametrize(
    ("verb", "settings"), [("search", SearchSettings()), ("train", TrainSettings()), ("collect", CollectSettings())]
)
def test_help_has_the_defaults(cli: Run, verb: str, settings: SearchSettings | TrainSettings | CollectSettings) -> None:
    said = " ".join(cli(verb, "--help").out.split())
    assert f"Passes over the training data. [default: {settings.epochs}] " in said
    assert f"Examples a batch. [default: {settings.batch_size}] " in said
    if verb != "train":
        assert f"the rest is for the architecture. [default: {DataSettings().train_portion}] " in said
    if isinstance(settings, CollectSettings):
        assert f"How many architectures. [default: {settings.count}" in said


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_of_all(cli: Run, arguments: list[str]) -> None:
    code, out, err = cli(*arguments)
    assert code == 0 and err == "" and out.startswith("Usage: nasengine [OPTIONS] COMMAND [ARGS]...\n")
    commands = out[out.index("Commands:") :]
    assert re.findall(r"^  (\w+)  +(.*?\.)$", commands, flags=re.MULTILINE) == [
        (verb, summary) for verb, (_, summary, _, _) in PAGES.items()
    ]
    assert "Start with: nasengine search --space darts --algo rarts" in out


def test_version(cli: Run) -> None:
    assert cli("--version") == (0, f"nasengine {nasengine.__version__}\n", "")


def test_help_is_light(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    code = (
        "import sys\nfrom nasengine._cli.main import main\nimport nasengine\n"
        "verbs = 'run search train propose export collect rank front compare report profile show list'.split()\n"
        "codes = [main([*verb, '--help']) for verb in [[], *([verb] for verb in verbs)]]\n"
        "assert codes == [0] * 14\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'networkx', 'pandas', 'pyarrow', 'pymoo', 'plotly'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
