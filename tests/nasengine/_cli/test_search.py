from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

import pytest

from nasengine import searching
from nasengine._cli.progress import Progress
from nasengine._cli.search import EPILOG
from nasengine.searching import SearchJob
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import FINAL, SEARCH, TINY, assert_same_run, contents, flags, record

QUICK = ("--epochs", "2", "--batch-size", "8", "--device", "cpu")


def test_a_search_is_told_and_kept(cli: Run, small: str, ended: Path) -> None:
    code, out, err = cli("search", "--data", small, *flags((*TINY, *FINAL)), *QUICK)
    where = "results/npz-small/darts/rarts/seed-0"
    assert code == 0 and err == ""
    assert out.startswith(f"{where}: 2 epochs of 2 steps on cpu\nepoch 1/2  train loss ")
    numbers = r"train loss [\d.]+  acc [\d.]+%  valid loss [\d.]+  acc [\d.]+%  supernet [\d.]+%  derived [\d.]+%"
    assert re.search(rf"\nepoch 2/2  {numbers}  entropy [\d.]+  [\d.]+ s/step  left 0 s\n", out)
    found = record(Path(where))["result"]
    assert "\nnormal(c_{k-2}, c_{k-1})\n" in out and f"\n{found['genotype']}\n" in out
    assert f"\nvalidation accuracy of the supernet: {found['supernet_accuracy']:.2%}\n" in out
    assert f"\nin {where}: run.json, history.csv, cells.svg, cells.png\n" in out
    assert out.endswith(f"\nNext: nasengine train {where}\n  --dry-run says how long that takes\n")
    assert f"\nparameters: {found['parameters']:,}, as it is trained, final.auxiliary=true\n" in out
    assert_same_run(Path(where), ended)


def test_flags_and_settings_are_one(cli: Run, small: str) -> None:
    common = ("search", "--data", small, *flags(TINY), "--device", "cpu")
    own = ("--epochs", "1", "--batch_size", "8", "--seed", "3", "--train-portion", "0.5", "--out", "flags")
    default = "as it is trained by default, final.channels=36 final.layers=20 final.auxiliary=true"
    assert f", {default}\n" in cli(*common, *own).out
    settings = ("search.epochs=1", "search.batch_size=8", "search.seed=3", "data.train_portion=0.5")
    cli(*common, *flags(settings), "--out", "settings")
    assert_same_run(Path("flags"), Path("settings"))
    assert record(Path("flags"))["config"] == record(Path("settings"))["config"]
    assert record(Path("flags"))["config"]["search"]["seed"] == 3


def test_config_repeats_a_run_and_flags_change_it(cli: Run, ended: Path) -> None:
    assert cli("search", "--config", ended, "--out", "directory").code == 0
    assert cli("search", "--config", ended / "run.json", "--out", "file").code == 0
    assert_same_run(Path("directory"), ended)
    assert_same_run(Path("file"), ended)
    assert cli("search", "--config", ended, "--epochs", "1", "--algo", "darts", "--out", "changed").code == 0
    changed, config = record(Path("changed"))["config"], record(ended)["config"]
    assert changed["search"]["epochs"] == 1 and changed["algo"]["name"] == "darts"
    assert changed["space"] == config["space"] and changed["data"] == config["data"]


def interrupt(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    step = SearchJob.step

    def interrupted(job: SearchJob, at: int) -> object:
        if at == 0:
            os.kill(os.getpid(), number)
        return step(job, at)

    monkeypatch.setattr(SearchJob, "step", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_tells_how_to_go_on(
    cli: Run, small: str, ended: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    interrupt(monkeypatch, number)
    code, _, err = cli("search", "--data", small, *flags(SEARCH), "--out", "my run")
    again = "nasengine search --out 'my run' --resume"
    assert code == 130
    assert err == f"nasengine: Stopped by {number.name} after step 1 of 4, all is saved: go on with '{again}'.\n"
    code, out, _ = cli(*shlex.split(again)[1:])
    assert code == 0 and "my run: goes on after step 1 on cpu\n" in out
    assert_same_run(Path("my run"), ended)


def test_ctrl_c_before_it_began(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "search", stop)
    code, out, err = cli("search")
    assert (code, out) == (130, "")
    told = "give the same command again, with --resume if it has that and its directory is there."
    assert err == f"nasengine: Stopped: {told}\n"


def test_resume_goes_on(cli: Run, stopped: Path, ended: Path) -> None:
    code, out, err = cli("search", "--out", stopped, "--resume", "--set", "search.checkpoint_seconds=0")
    assert code == 0 and err == "" and f"{stopped}: goes on after step 2 on cpu\nepoch 2/2 " in out
    assert_same_run(stopped, ended)


def test_dry_run_tells_the_cost_and_writes_nothing(cli: Run, small: str) -> None:
    code, out, err = cli("search", "--data", small, *flags(TINY), *QUICK, "--dry-run", "--out", "run")
    assert code == 0 and err == "" and contents(Path()) == {} and not list(Path().iterdir())
    assert re.fullmatch(
        r"search: darts by rarts on npz-small, 2 epochs of 2 steps\n"
        r"  supernet: [\d,]+ parameters, 4 choices\n"
        r"  a step of 8: about \d+\.\d\d s and [\d,]+ MiB, of which [\d,]+ grow with the batch\n"
        r"  4 steps: about [\d,]+\.\d minutes, without evaluation\n"
        r"final training of a random architecture, at the defaults of 'nasengine train':\n"
        r"  network: [\d,]+ parameters, [\d,]+ multiply-adds\n"
        r"  a step of 32: about \d+\.\d\d s and [\d,]+ MiB, of which [\d,]+ grow with the batch\n"
        r"  600 steps: about [\d,]+\.\d (minutes|hours), without evaluation\n",
        out,
    )


def test_the_example_works(cli: Run, small: str) -> None:
    example = re.search(r"nasengine (.*)", EPILOG)
    assert example is not None
    arguments = [small if part == "cifar10:PATH" else part for part in shlex.split(example[1])]
    assert small in arguments
    assert cli(*arguments, *flags(TINY), *QUICK, "--out", "run").code == 0
    assert record(Path("run"))["config"]["algo"]["order"] == "second"


def test_the_example_of_the_start_works(cli: Run, small: str) -> None:
    from nasengine._cli.main import app

    example = re.search(r"nasengine (search [^(]*)", str(app.info.epilog))
    assert example is not None
    assert cli(*shlex.split(example[1]), "--data", small, *flags(TINY), *QUICK, "--out", "run").code == 0


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3720, "1 h 02 min")])
def test_time_that_is_left(seconds: float, words: str) -> None:
    progress = Progress()
    progress._steps, progress._done, progress._pace = 1, 0, seconds
    from nasengine._cli.progress import duration

    assert duration(progress._left()) == words


def test_a_step_that_keeps_its_memory(cli: Run, small: str) -> None:
    arguments = ("search", "--data", small, *flags((*TINY, *FINAL, "algo.sweep=stale")), *QUICK)
    whole = cli(*arguments, "--dry-run").out
    found = re.search(r"a step of 8: about .* and (\d+) MiB, ", whole)
    assert found is not None
    divided = cli(*arguments, "--step-memory", "0.3MB", "--dry-run")
    assert divided.code == 0 and re.search(
        r"  a step of 8 in [234] micro-batches: about \d+\.\d\d s and \d+ MiB", divided.out
    )
    code, _, err = cli(*arguments, "--step-memory", "2KB", "--out", "run")
    assert code == 2 and not Path("run").exists()
    assert re.fullmatch(
        r"nasengine: The limit must leave room for a step, but --step-memory 2,000 is below the [\d,]+ bytes that "
        r"micro-batches of 2 would take; give more than \d+, or search a smaller space\.\n",
        err,
    )
    assert cli(*arguments, "--step-memory", "much").err.startswith("nasengine: search.step_memory must be ")
