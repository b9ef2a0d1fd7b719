"""`holds`, on which the chapters' tests stand: it passes what is right, and no fault slips through."""

from types import ModuleType

import pytest
from toys import AS_IT_IS, holds

CODE = ModuleType("double")
CODE.__source__ = "def double(x):\n    return 2 * x\n"
exec(CODE.__source__, CODE.__dict__)


@holds(CODE, {"adds": ("2 * x", "2 + x"), "halves": ("2 * x", "x / 2")})
def test_double(code):
    assert code.double(3) == 6


def faults_of(test):
    (mark,) = test.pytestmark
    return mark.args[1]


def test_the_chapter_and_every_fault_are_one_test_each():
    assert faults_of(test_double) == [AS_IT_IS, "adds", "halves"]
    assert test_double.__name__ == "test_double"


def test_a_fault_that_goes_unnoticed_fails():
    @holds(CODE, {"adds": ("2 * x", "2 + x")})
    def weak(code):
        assert code.double(2) == 4

    weak(AS_IT_IS)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        weak("adds")


def test_a_fault_in_text_that_is_not_there_fails():
    @holds(CODE, {"gone": ("3 * x", "2 * x")})
    def gone(code):
        pass

    with pytest.raises(pytest.fail.Exception, match="0 times, not once"):
        gone("gone")


def test_a_check_that_fails_anyway_notices_nothing():
    @holds(CODE, {"adds": ("2 * x", "2 + x")})
    def broken(code):
        raise AssertionError("whatever the code")

    for fault in (AS_IT_IS, "adds"):
        with pytest.raises(AssertionError, match="whatever the code"):
            broken(fault)
