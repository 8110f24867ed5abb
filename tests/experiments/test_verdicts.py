"""Verdicts on made-up differences, with p-values that can be counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from experiments.common.verdicts import (
    CLAIM,
    FAILS,
    HOLDS,
    IN_PART,
    POINTS,
    TIMES,
    UNDECIDED,
    Row,
    Test,
    claim,
    control,
    identity,
    interval,
    overall,
    settle,
)

Test.__test__ = False  # type: ignore[attr-defined]  # not one of pytest's
TEN = np.linspace(0.01, 0.02, 10)


def made(*tests: Test) -> Row:
    return claim("short", "said", "source", *tests)


def verdict(*tests: Test) -> str:
    return settle([made(*tests)])[0].verdict


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        (TEN, HOLDS),
        (-TEN, FAILS),
        (TEN - 0.015, UNDECIDED),
        (TEN[:5], UNDECIDED),  # five seeds cannot reach 5 %
        (TEN[:6], HOLDS),
        (np.zeros(10), FAILS),  # no difference at all
        (np.r_[TEN[:9], np.nan], UNDECIDED),
        (np.full(10, np.nan), FAILS),
        (np.full(10, np.inf), HOLDS),
        (np.r_[TEN, TEN], HOLDS),  # more than are enumerated
    ],
)
def test_a_claim_is_decided_by_the_signs_of_its_differences(differences, expected):
    assert verdict(Test("d", differences)) == expected


@pytest.mark.parametrize(
    ("differences", "expected"),
    [(TEN, HOLDS), (-TEN, HOLDS), (10 * TEN, FAILS), (-10 * TEN, FAILS), (5 * TEN, UNDECIDED)],
)
def test_a_claim_of_equality_has_a_margin(differences, expected):
    assert verdict(Test("d", differences, within=0.075)) == expected


@given(st.lists(st.integers(-10, 10), min_size=2, max_size=9))
def test_p_values_are_those_of_scipy(differences):
    ours = Test("d", differences).p_values()[0]
    theirs = permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", alternative="greater"
    ).pvalue
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_many_claims_at_once_are_harder_to_prove():
    weak = Test("weak", np.r_[np.full(7, 0.01), -0.001])  # p = 4 / 256 alone
    strong = [Test(f"strong {i}", TEN) for i in range(9)]
    assert verdict(weak) == HOLDS
    rows = settle([made(weak), *map(made, strong)])
    assert [row.verdict for row in rows] == [HOLDS] * 10  # the last of Holm's factors is 1
    unproven = [Test(f"even {i}", TEN - 0.015) for i in range(9)]
    assert settle([made(weak), *map(made, unproven)])[0].verdict == UNDECIDED


def test_a_claim_of_several_parts():
    yes, no, open_ = Test("yes", TEN), Test("no", -TEN), Test("open", TEN - 0.015)
    assert verdict(yes, yes) == HOLDS
    assert verdict(yes, no) == verdict(yes, open_) == IN_PART
    assert verdict(no, open_) == FAILS
    assert overall([UNDECIDED, UNDECIDED]) == UNDECIDED
    assert overall([IN_PART, FAILS]) == IN_PART


def test_only_claims_get_a_verdict_and_count_for_the_correction():
    weak = Test("weak", np.r_[np.full(7, 0.01), -0.001])
    rows = settle([made(weak), control("c", "what", "found"), identity("i", "what", "found")])
    assert [row.verdict for row in rows] == [HOLDS, "", ""]
    assert rows[0].kind == CLAIM and rows[0].numbers["weak"]["p"] == pytest.approx(4 / 256)


def test_differences_in_words():
    assert Test("d", TEN, POINTS).in_words() == "+1.50 [+1.26, +1.74] points"
    assert Test("d", np.log([2.0, 2.0, 2.0]), TIMES).in_words() == "2.00 times"  # no interval
    assert Test("d", np.log([2.0, 8.0]), TIMES, capped=True).in_words() == "at least 4.00 times"
    assert "diverged" in Test("d", [np.nan, 1.0]).in_words()
    assert Test("d", [0.5]).in_words() == "+50.00 points"


def test_an_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (2, pytest.approx(4.302653 / np.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)


def test_a_row_in_json_names_its_tests():
    (row,) = settle([made(Test("a", TEN), Test("b", TEN))])
    assert row.as_json()["test"] == "a; b"
    assert set(row.as_json()["numbers"]) == {"a", "b"}
