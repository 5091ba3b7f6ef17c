import copy
import pickle

import pytest

from nasengine.architecture import Architecture, Choice
from nasengine.errors import ArchitectureError, NasengineError

ONE = Architecture({"kernel": "3", "cell/0-2": "skip"})


def test_text_reads_back() -> None:
    assert str(ONE) == "kernel=3 cell/0-2=skip"
    assert Architecture.parse(str(ONE)) == ONE
    assert Architecture.parse("\n kernel=3\t\tcell/0-2=skip \n") == ONE
    assert eval(repr(ONE)) == ONE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("kernel", "form label=option, but got 'kernel'"),
        ("=3", "form label=option, but got '=3'"),
        ("kernel=", "form label=option, but got 'kernel='"),
        ("kernel=3=5", "form label=option, but got 'kernel=3=5'"),
        ("kernel=3 kernel=5", "'kernel' came twice"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.parse(text)


def test_is_a_value() -> None:
    other_order = Architecture({"cell/0-2": "skip", "kernel": "3"})
    assert other_order == ONE
    assert hash(ONE) == hash(other_order)
    assert len({ONE, other_order, ONE.replace("kernel", "5")}) == 2
    assert Architecture({"kernel": "3"}) != ONE
    assert list(ONE) == ["kernel", "cell/0-2"]
    assert (len(ONE), ONE["kernel"]) == (2, "3")


def test_copies_are_equal() -> None:
    assert copy.deepcopy(ONE) == ONE
    assert pickle.loads(pickle.dumps(ONE)) == ONE


def test_does_not_change() -> None:
    options = {"kernel": "3"}
    one = Architecture(options)
    options["kernel"] = "5"
    assert one["kernel"] == "3"
    assert one.replace("kernel", "7")["kernel"] == "7"
    assert one["kernel"] == "3"
    with pytest.raises(TypeError, match="does not support item assignment"):
        one["kernel"] = "5"  # type: ignore[index]


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("a b", ("x",), "choice 'a b' has 'a b'"),
        ("", ("x",), "choice '' has ''"),
        ("a", ("x=1",), "choice 'a' has 'x=1'"),
        ("a", ("x", "y\n"), "choice 'a' has 'y"),
        ("a", (), "one or more different options"),
        ("a", ("x", "x"), "one or more different options"),
    ],
)
def test_choices_have_words(label: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message) as caught:
        Choice(label, options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, NasengineError)
