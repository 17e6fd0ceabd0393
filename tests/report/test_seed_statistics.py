"""Mean, std and the paired t test against hand arithmetic and scipy 1.17.1.

Seen red under: n for n - 1 in the std; df - 1 turned into df;
    the sign of the difference swapped; the sqrt(n) of the standard error dropped.
"""

from __future__ import annotations

import math

import pytest

from moco_transfer.report.seed_statistics import paired_t_test, summarize, two_sided_p


def test_summarize__hand_computed():
    # deviations -0.7, -0.2, 0.9; squares 0.49 + 0.04 + 0.81 = 1.34; 1.34 / 2 = 0.67
    summary = summarize([53.0, 53.5, 54.6])
    assert summary.n == 3
    assert summary.mean == pytest.approx(53.7, abs=1e-12)
    assert summary.std == pytest.approx(math.sqrt(0.67), abs=1e-12)


def test_summarize__one_value_has_no_std_and_none_has_no_mean():
    assert summarize([5.0]).std is None
    assert summarize([5.0]).mean == 5.0
    assert math.isnan(summarize([]).mean)


def test_paired_t_test__hand_computed():
    # differences 2.0, 2.5, 3.0: mean 2.5, std 0.5, t = 2.5 / (0.5 / sqrt 3) = 5 sqrt 3; for df = 2,
    # p = 1 - t / sqrt(t^2 + 2)
    test = paired_t_test([55.0, 56.0, 57.6], [53.0, 53.5, 54.6])
    assert test.n == 3
    assert test.t == pytest.approx(5 * math.sqrt(3), rel=1e-12)
    assert test.p == pytest.approx(1 - 5 * math.sqrt(3) / math.sqrt(77), rel=1e-9)


# python -c "from scipy import stats; r = stats.ttest_rel(A, B); print(repr(float(r.statistic)),
# repr(float(r.pvalue)))"
@pytest.mark.parametrize(
    ("a", "b", "t", "p"),
    [
        (
            [60.6, 60.6, 60.7, 60.9, 61.1],
            [60.9, 60.5, 60.8, 60.7, 61.3],
            -0.646996639220618,
            0.5528894339334245,
        ),
        (
            [10.0, 20.0, 30.0, 40.0],
            [12.0, 17.0, 31.0, 38.5],
            0.32797823268555165,
            0.764484958580966,
        ),
        (
            [50.0, 50.1, 50.2, 50.3, 50.1, 50.0, 49.9, 50.2, 50.4, 50.1],
            [52.0, 52.3, 51.9, 52.2, 52.1, 52.4, 51.8, 52.0, 52.2, 52.3],
            -28.823431610240583,
            3.548257006882205e-10,
        ),
    ],
)
def test_paired_t_test__equals_scipy(a, b, t, p):
    test = paired_t_test(a, b)
    assert test.t == pytest.approx(t, rel=1e-9)
    assert test.p == pytest.approx(p, rel=1e-7)


# python -c "from scipy import special; print(repr(float(special.betainc(DF / 2, 0.5, X))))"
# with X = DF / (DF + T^2)
@pytest.mark.parametrize(
    ("x", "df", "expected"),
    [
        (0.3, 4, 0.03784096948581308),
        (0.999, 24, 0.8781199755624819),
        (1e-6, 2, 5.000001250000625e-07),
        (0.9, 2, 0.6837722339831621),
    ],
)
def test_two_sided_p__equals_scipy(x, df, expected):
    assert two_sided_p(math.sqrt(df * (1 / x - 1)), df) == pytest.approx(expected, rel=1e-10)


def test_paired_t_test__equal_differences():
    # 0.1 steps are not exact in binary: the differences 0.3 differ in the last bits, which is no
    # spread
    test = paired_t_test([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    assert (test.t, test.p) == (math.inf, 0.0)
    assert paired_t_test([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]).t == -math.inf
    assert math.isnan(paired_t_test([1.0, 2.0], [1.0, 2.0]).p)


def test_paired_t_test__refuses_unpaired_rows():
    with pytest.raises(ValueError, match="shorter"):
        paired_t_test([1.0, 2.0, 3.0], [1.0, 2.0])
