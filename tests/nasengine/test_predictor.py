"""The base of predictors, under scikit-learn's tools, and the files of fitted ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

import nasengine
from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError, DataError, RunError, SettingError, UnknownNameError
from nasengine.predictor import PREDICTORS, load_predictor
from nasengine.seeding import generator
from nasengine.task import Shapes
from nasengine.testing import known_scores
from predictors.boosting import Boosting
from predictors.ridge import RidgeRegression
from search_spaces._nasbench101_cells import enumerate_cells
from search_spaces._nasbench101_sequence import CellSequence
from search_spaces.nasbench101 import NASBench101
from search_spaces.nasbench201 import NASBench201

CIFAR = Shapes((3, 32, 32), 10)
SPACE = NASBench201()
ROOT = Path(__file__).parents[2]


def sampled(count: int) -> tuple[list[Architecture], NDArray[np.float64]]:
    rng = generator(0)
    found = list(dict.fromkeys(SPACE.sample(SPACE.choices(), rng) for _ in range(count)))
    return found, known_scores(SPACE.encode(found, CIFAR))


ARCHITECTURES, SCORES = sampled(90)


@pytest.fixture(scope="module")
def cells() -> CellSequence:
    every = CellSequence(enumerate_cells(5))
    return every[np.random.default_rng(0).permutation(len(every))[:90]]


# Under the tools of scikit-learn


def test_cross_validation_of_a_list_and_of_a_sequence(cells: CellSequence) -> None:
    folds = KFold(3, shuffle=True, random_state=0)
    for predictor, architectures in (
        (RidgeRegression(space=SPACE), ARCHITECTURES),
        (RidgeRegression(space="nasbench101"), cells),
    ):
        space = NASBench101() if architectures is cells else SPACE
        scores = known_scores(space.encode(architectures, CIFAR))
        found = cross_val_score(predictor, architectures, scores, cv=folds)
        assert found.shape == (3,) and (found > 0.5).all()
        guesses = cross_val_predict(predictor, architectures, scores, cv=folds)
        assert np.corrcoef(guesses, scores)[0, 1] > 0.7
    train, test, _, _ = train_test_split(ARCHITECTURES, SCORES, random_state=0)
    assert isinstance(train, list) and isinstance(test[0], Architecture)


def test_a_search_over_a_setting() -> None:
    search = GridSearchCV(Boosting(space=SPACE, members=1), {"trees": [1, 40]}, cv=3).fit(ARCHITECTURES, SCORES)
    assert search.best_params_ == {"trees": 40} and search.best_estimator_.trees == 40
    assert np.array_equal(search.predict(ARCHITECTURES), search.best_estimator_.predict(ARCHITECTURES))


def test_a_pipeline_that_reads_texts() -> None:
    texts = [SPACE.write(architecture) for architecture in ARCHITECTURES]
    reading = FunctionTransformer(lambda rows: [SPACE.read(row) for row in rows])
    pipeline = make_pipeline(reading, RidgeRegression(space=SPACE)).fit(texts, SCORES)
    expected = RidgeRegression(space=SPACE).fit(ARCHITECTURES, SCORES)
    assert np.array_equal(pipeline.predict(texts), expected.predict(ARCHITECTURES))


def test_a_transformed_target() -> None:
    model = TransformedTargetRegressor(RidgeRegression(space=SPACE), func=np.exp, inverse_func=np.log)
    expected = RidgeRegression(space=SPACE).fit(ARCHITECTURES, SCORES).predict(ARCHITECTURES)
    np.testing.assert_allclose(model.fit(ARCHITECTURES, SCORES).predict(ARCHITECTURES), expected, atol=1e-3)


def test_parameters_of_scikit_learn() -> None:
    predictor = Boosting(space="nasbench201", trees=7)
    assert predictor.get_params() == {
        "space": "nasbench201",
        "shapes": CIFAR,
        "trees": 7,
        "lr": 0.05,
        "leaves": 16,
        "members": 3,
        "seed": 0,
    }
    assert clone(predictor).trees == 7 and repr(predictor) == "Boosting(space='nasbench201', trees=7)"
    with pytest.raises(NotFittedError):
        check_is_fitted(predictor)
    predictor.fit(ARCHITECTURES, SCORES)
    check_is_fitted(predictor)
    assert predictor.score(ARCHITECTURES, SCORES) > 0.1
    with pytest.raises(ValueError, match="Invalid parameter 'tree'"):
        predictor.set_params(tree=3)


@pytest.mark.parametrize("space", ["nasbench201", NASBench201, SPACE], ids=["name", "class", "instance"])
def test_spaces_are_named_as_everywhere(space: Any) -> None:
    found = RidgeRegression(space=space).fit(ARCHITECTURES, SCORES).predict(ARCHITECTURES)
    assert np.array_equal(found, RidgeRegression(space=SPACE).fit(ARCHITECTURES, SCORES).predict(ARCHITECTURES))


def test_parameters_that_change_do_not_change_what_is_fitted() -> None:
    predictor = RidgeRegression(space=SPACE).fit(ARCHITECTURES, SCORES)
    before = predictor.predict(ARCHITECTURES)
    predictor.set_params(space="darts", shapes=Shapes((1, 8, 8), 2))
    assert np.array_equal(predictor.predict(ARCHITECTURES), before)


def test_a_file_has_the_settings_of_the_fit(tmp_path: Path) -> None:
    predictor = Boosting(space=SPACE, trees=5).fit(ARCHITECTURES, SCORES)
    before = predictor.predict(ARCHITECTURES)
    predictor.set_params(trees=1, space="darts").save(tmp_path / "saved")
    loaded = load_predictor(tmp_path / "saved")
    assert loaded.get_params()["trees"] == 5 and np.array_equal(loaded.predict(ARCHITECTURES), before)


# Bad input

ONE = ARCHITECTURES[:1]
TWO = ARCHITECTURES[:2]
OTHER = Architecture({**ARCHITECTURES[0], "cell/0-1": "conv"})
MORE = Architecture({**ARCHITECTURES[0], "cell/0-9": "none"})
LESS = Architecture(dict(list(ARCHITECTURES[0].items())[1:]))


@pytest.mark.parametrize(
    ("architectures", "scores", "told"),
    [
        ([], [], "Scores must differ for a predictor to be fitted, but they are none; label more architectures"),
        (TWO, [2, 2], "must differ for a predictor to be fitted, but they are 2 all 2 times; label more"),
        (ONE, [0.5], "but they are 0.5 all 1 times"),
        (TWO, [1, np.inf], "must be finite, but that of architecture 2 is inf; drop it, or give a failed training"),
        (TWO, [None, 1], "must be finite, but that of architecture 1 is nan"),
        (TWO, ["a", "b"], r"Scores must be numbers, but got .*'a', 'b'.*; give one an architecture"),
        (TWO, [[1], [1, 2]], "Scores must be numbers, but got"),
        (TWO, [[1, 2], [3, 4]], r"one output, but the scores have the shape \(2, 2\); give one number"),
        (TWO, 1.0, r"one output, but the scores have the shape \(\)"),
        (TWO, [1, 2, 3], "one score an architecture, but there are 3 for 2; drop the others"),
        ([*TWO, TWO[0]], [1, 2, 3], "those of rows 1 and 3 are the same and have 1 and 3; give their mean"),
        (
            TWO,
            [0, 1e300],
            "must be at most 1e.150 and differ by 1e-150 or more, but are from 0 to 1e.300; give them in",
        ),
        (TWO, [0, 1e-300], "differ by 1e-150 or more"),
    ],
)
def test_scores_that_cannot_be_fitted(architectures: Any, scores: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"{told}.*[.]$"):
        RidgeRegression(space=SPACE).fit(architectures, scores)


@pytest.mark.parametrize(
    ("architectures", "told"),
    [
        (None, "must come in a sequence, but got a NoneType; give a list"),
        ("text", "must come in a sequence, but got a str; give a list"),
        (TWO[0], "must come in a sequence, but got a Architecture; give a list"),
        (set(TWO), "must come in a sequence, but got a set"),
        ([TWO[0], str(TWO[1])], "be given architectures, but number 2 is a str; make texts architectures by the read"),
        ([dict(TWO[0]), TWO[1]], "but number 1 is a dict"),
        ([TWO[0], None], "but number 2 is a NoneType"),
        (
            [TWO[0], OTHER],
            "of its space, 'nasbench201', but number 2 is none: Choice 'cell/0-1' must be one of .*'conv'",
        ),
        ([MORE, TWO[0]], "number 1 is none: Space 'nasbench201' has no choice 'cell/0-9'"),
        ([TWO[0], LESS], "number 2 is none: The architecture must decide 'cell/0-1'"),
        (CellSequence(enumerate_cells(3))[:2], "'nasbench201', but number 1 is none: The architecture must decide"),
    ],
    ids=range(11),
)
def test_what_is_no_architecture_of_the_space(architectures: Any, told: str) -> None:
    predictor = RidgeRegression(space=SPACE)
    with pytest.raises(ArchitectureError, match=f"{told}.*[.]$"):
        predictor.fit(architectures, [1, 2])
    predictor.fit(ARCHITECTURES, SCORES)
    if architectures is not None:
        with pytest.raises(ArchitectureError, match=f"{told}.*[.]$"):
            predictor.fit(ARCHITECTURES, SCORES, architectures)
    with pytest.raises(ArchitectureError, match=f"{told}.*[.]$"):
        predictor.predict(architectures)
    predictor.predict(ARCHITECTURES)


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"trees": 0}, SettingError, "predictor.trees must be at least 1, but got 0"),
        ({"lr": "fast"}, SettingError, "predictor.lr must be a number, but got 'fast'"),
        ({"space": None}, SettingError, "The space of a predictor must be a name, a class or an instance of Space"),
        ({"space": []}, SettingError, "A search space must be a name, a class or an instance of Space, but got a list"),
        ({"space": "nasbench"}, UnknownNameError, "Unknown search space 'nasbench': did you mean 'nasbench"),
        ({"shapes": (3, 32, 32)}, SettingError, "shapes of a predictor must be of type Shapes, but got a tuple; write"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Boosting(**{"space": SPACE, **settings}).fit(ARCHITECTURES, SCORES)


def test_an_empty_pool_and_an_empty_batch() -> None:
    predictor = RidgeRegression(space=SPACE)
    with pytest.raises(DataError, match=r"unlabelled architectures must not be empty, but is; leave it out, or give"):
        predictor.fit(ARCHITECTURES, SCORES, [])
    predictor.fit(ARCHITECTURES, SCORES)
    assert predictor.predict([]).shape == (0,)
    assert [part.shape for part in predictor.predict([], return_std=True)] == [(0,), (0,)]


def test_what_is_not_fitted(tmp_path: Path) -> None:
    predictor = RidgeRegression(space=SPACE)
    with pytest.raises(NotFittedError, match="'ridge' must be fitted before it predicts, but is not; call fit"):
        predictor.predict(ARCHITECTURES)
    with pytest.raises(NotFittedError, match="'ridge' must be fitted before it is saved, but is not; call fit"):
        predictor.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


# Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "predictor.safetensors"
    RidgeRegression(space=NASBench201(channels=4), shapes=Shapes((1, 8, 8), 2)).fit(ARCHITECTURES, SCORES).save(path)
    return path


def test_a_file_has_all_that_is_needed(saved: Path) -> None:
    loaded = load_predictor(saved)
    assert isinstance(loaded, RidgeRegression) and loaded.space == NASBench201(channels=4)
    assert loaded.shapes == Shapes((1, 8, 8), 2) and [path.name for path in saved.parent.iterdir()] == [saved.name]
    expected = RidgeRegression(space=SPACE).fit(ARCHITECTURES, SCORES).predict(ARCHITECTURES)
    np.testing.assert_allclose(loaded.predict(ARCHITECTURES), expected, rtol=1e-9)
    loaded.save(saved)
    assert load_predictor(str(saved)).get_params() == loaded.get_params()


def test_every_byte_counts(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "changed"
    for place in np.random.default_rng(0).integers(0, len(content), 60).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(RunError, match=r"must be a whole file of this version of nasengine, but .* is not; fit"):
            load_predictor(path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_that_is_cut(saved: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut").write_bytes(saved.read_bytes()[:length])
    with pytest.raises(RunError, match="must be a whole file of this version of nasengine"):
        load_predictor(tmp_path / "cut")


@pytest.mark.parametrize(
    "about", [None, {}, {"nasengine": "{}"}, {"nasengine": "[1]"}, {"nasengine": "{", "checksum": ""}]
)
def test_a_file_of_something_else(saved: Path, tmp_path: Path, about: dict[str, str] | None) -> None:
    save_file(load_file(saved), tmp_path / "other", metadata=about)
    with pytest.raises(RunError, match="must be a whole file of this version of nasengine"):
        load_predictor(tmp_path / "other")


def test_places_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There must be a saved predictor at .*nowhere, but there is none; fit one and"):
        load_predictor(tmp_path / "nowhere")
    with pytest.raises(RunError, match="must be a whole file of this version of nasengine"):
        load_predictor(tmp_path)
    predictor = RidgeRegression(space=SPACE).fit(ARCHITECTURES, SCORES)
    with pytest.raises(RunError, match="must be writable, but No such file or directory"):
        predictor.save(tmp_path / "nowhere" / "file")


def test_a_space_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text((ROOT / "examples/images.py").read_text())
    space = nasengine.SPACES[f"{file}:SmallCNN"]()
    choices, rng = space.choices(CIFAR), generator(0)
    known = list(dict.fromkeys(space.sample(choices, rng) for _ in range(9)))[:5]
    RidgeRegression(space=space).fit(known, range(5)).save(tmp_path / "saved")
    assert load_predictor(tmp_path / "saved").predict(known).shape == (5,)
    file.unlink()
    with pytest.raises(SettingError, match=r"A plug-in file must exist, but .*own.py does not"):
        load_predictor(tmp_path / "saved")


# Where they are found


def test_found_by_name_and_by_module() -> None:
    assert PREDICTORS["ridge"] is RidgeRegression is PREDICTORS["predictors.ridge:RidgeRegression"]
    assert {"boosting", "gaussian-process", "ridge"} <= set(PREDICTORS.names())
    with pytest.raises(UnknownNameError, match="Unknown predictor 'rigde': did you mean 'ridge'"):
        PREDICTORS["rigde"]
    with pytest.raises(
        SettingError, match=r"The predictor 'search_spaces.darts:DARTS' must be a subclass of Predictor"
    ):
        PREDICTORS["search_spaces.darts:DARTS"]


def test_names_are_loaded_on_use(tmp_path: Path) -> None:
    code = (
        "import sys, nasengine\n"
        "assert 'sklearn' not in sys.modules and 'numpy' not in sys.modules\n"
        "nasengine.Predictor, nasengine.PREDICTORS, nasengine.load_predictor, nasengine.Graphs\n"
        "assert 'sklearn' in sys.modules\n"
        "nasengine.PREDICTORS.names()\n"
        "assert 'torch_geometric' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
