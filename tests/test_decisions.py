"Calibration, cutoffs and decisions against slow and obvious references."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpv_fastai.calibration import ProbabilityCalibrator, brier_score, calibration_error, probability_steps
from bpv_fastai.decisions import ExpectedF1, F1Cutoffs, coverage_curve, expected_f1, threshold_for
from bpv_fastai.metrics import CategoryCounts, path_scores
from bpv_fastai.probabilities import TopProbs, as_top_probs


@st.composite
def problems(draw):
    "Probabilities of every odd kind: spread, peaked, rounded so that many are equal, with zeros, all equal"
    n, c, seed = draw(st.integers(1, 40)), draw(st.integers(1, 12)), draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(c, draw(st.sampled_from([.05, .5, 5.]))), n)
    kind = draw(st.sampled_from(['plain', 'rounded', 'zeros', 'equal', 'one']))
    if kind == 'rounded': probs = probs.round(1)
    if kind == 'zeros': probs = probs * (rng.random((n, c)) < .5)
    if kind == 'equal': probs[:] = 1 / c
    if kind == 'one': probs = np.eye(c)[rng.integers(0, c, n)]
    return probs.astype(draw(st.sampled_from([np.float32, np.float64])))


def curve_by_hand(p):
    "Algorithm 1 for one category: (F1, cutoff) after each title, the most probable first; a cutoff lets all of equal probability pass"
    n, t, curve = p.sum(dtype=np.float64), 0., []
    p = sorted(p.tolist(), reverse=True)
    for i, q in enumerate(p, 1):
        t += q
        if t > 0 and (i == len(p) or p[i] != q): curve.append((2 * (t / i) * (t / n) / (t / i + t / n), q))
    return curve


@given(problems())
@settings(max_examples=500, deadline=None)
def test_cutoffs_are_those_of_algorithm_1(probs):
    cutoffs = F1Cutoffs.fit(probs).cutoffs
    for p, cutoff in zip(probs.T, cutoffs):
        curve = curve_by_hand(p)
        if not curve: assert cutoff == np.inf; continue
        at_cutoff = [f1 for f1, q in curve if q == cutoff]
        assert len(at_cutoff) and at_cutoff[0] == pytest.approx(max(f1 for f1, _ in curve), abs=1e-9)


@given(problems(), st.sampled_from(['argmax', 'rarest', 'abstain']))
@settings(max_examples=300, deadline=None)
def test_titles_get_the_best_category_whose_cutoff_they_pass(probs, fallback):
    rule = F1Cutoffs.fit(probs, fallback)
    totals = probs.sum(0, dtype=np.float64)
    for row, pred in zip(probs, rule.predict(probs)):
        passed = [c for c in range(len(row)) if row[c] >= rule.cutoffs[c]]
        if passed: assert row[pred] == max(row[c] for c in passed) and pred in passed
        elif fallback == 'argmax': assert row[pred] == row.max()
        elif fallback == 'rarest': assert totals[pred] == pytest.approx(totals.min())
        else: assert pred == -1


@given(problems())
@settings(max_examples=300, deadline=None)
def test_expected_f1_is_never_below_the_others(probs):
    for fallbacks in (('argmax',), ('argmax', 'rarest')):
        score = expected_f1(probs, ExpectedF1.fit(probs, fallbacks=fallbacks).predict(probs))
        others = [probs.argmax(1), *(F1Cutoffs.fit(probs, f).predict(probs) for f in fallbacks)]
        assert score >= max(expected_f1(probs, o) for o in others) - 1e-9


@given(problems())
@settings(max_examples=100, deadline=None)
def test_expected_f1_by_hand(probs):
    preds = probs.argmax(1)
    total = 0.
    for c in range(probs.shape[1]):
        n, t, g = probs[:, c].sum(dtype=np.float64), probs[preds == c, c].sum(dtype=np.float64), (preds == c).sum()
        if n + g: total += n * 2 * t / (n + g)
    assert expected_f1(probs, preds) == pytest.approx(total / max(probs.sum(dtype=np.float64), 1e-12), abs=1e-6)


@given(problems(), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_compact_form_keeps_sums_and_the_largest(probs, k):
    top = TopProbs.gather(np.array_split(probs, min(3, len(probs))), k)
    assert np.allclose(top.totals, probs.sum(0, dtype=np.float64), atol=1e-5)
    kept = min(k, probs.shape[1])
    assert np.allclose(np.sort(top.values, 1), np.sort(probs, 1)[:, probs.shape[1] - kept:])
    assert np.allclose(probs[np.arange(len(probs)), top.best()[0]], probs.max(1))
    assert all(probs[i, c] == v for i in range(len(probs)) for c, v in zip(top.ids[i], top.values[i]))


def test_compact_decisions_within_their_bound():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(500, .01), 5_000).astype(np.float32)
    top = TopProbs.gather(np.array_split(probs, 9), 32)
    full, compact = F1Cutoffs.fit(as_top_probs(probs, 500)), F1Cutoffs.fit(top)
    assert np.array_equal(full.cutoffs, compact.cutoffs) and np.array_equal(full.predict(probs), compact.predict(top))
    whole, short = ExpectedF1.fit(as_top_probs(probs, 500)).predict(probs), ExpectedF1.fit(top).predict(top)
    assert (whole == short).mean() > .999


@given(problems(), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_calibration_never_falls_and_stays_a_probability(probs, seed):
    targs = np.random.default_rng(seed).integers(0, probs.shape[1], len(probs))
    calibrator = ProbabilityCalibrator().fit(probs, targs)
    p = np.linspace(0, 1, 2_001)
    made = calibrator.transform(p[:, None])[:, 0]
    assert (np.diff(made) >= -1e-9).all() and made.min() >= 0 and made.max() <= 1 and np.isfinite(made).all()
    steps = probability_steps(probs, targs)
    assert steps.claims.sum() == probs.size and steps.true.sum() == len(probs)
    assert np.allclose(calibrator.transform(probs, renormalise=True).sum(1), 1, atol=1e-3) or (probs.sum(1) == 0).any()


def test_calibration_mends_what_was_bent():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.full(40, .05), 40_000)
    targs = (honest.cumsum(1) > rng.random((40_000, 1))).argmax(1)
    for power in (.6, 1.7):
        bent = honest**power / (honest**power).sum(1, keepdims=True)
        made = ProbabilityCalibrator().fit(bent[:20_000], targs[:20_000]).transform(bent[20_000:])
        raw, mended = (calibration_error(p.max(1), p.argmax(1) == targs[20_000:]) for p in (bent[20_000:], made))
        assert mended < .5 * raw and brier_score(made, targs[20_000:]) < brier_score(bent[20_000:], targs[20_000:])


def test_calibrated_sums_of_the_compact_form():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(200, .05), 2_000)
    calibrator = ProbabilityCalibrator().fit(probs, rng.integers(0, 200, 2_000))
    assert np.allclose(calibrator.transform(TopProbs.gather([probs], 24)).totals, calibrator.transform(probs).sum(0), atol=1e-6)


def test_cutoffs_and_expected_f1_raise_weighted_f1():
    rng = np.random.default_rng(3)
    share = 1 / np.arange(1, 101)
    probs = rng.dirichlet(5 * share / share.sum(), 20_000)
    targs = (probs.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    half = slice(0, 10_000), slice(10_000, None)
    def f1(preds, t): return CategoryCounts(100).add(t, preds).averages()['f1']
    best, cut, direct = (f1(r(probs[half[1]]), targs[half[1]]) for r in (lambda p: p.argmax(1), F1Cutoffs.fit(probs[half[0]]).predict, ExpectedF1.fit(probs[half[0]]).predict))
    assert cut > best and direct > best


def test_threshold_holds_what_it_promises():
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(100):
        confidence = rng.random(5_000)
        correct = rng.random(5_000) < confidence
        t = threshold_for(confidence, correct, .9)
        kept.append(t)
    assert np.mean((1 + np.array(kept)) / 2 >= .9) >= .95 and np.median(kept) < .9  # the true precision of uniform confidences from t up is (1+t)/2


def test_coverage_by_hand():
    curve = coverage_curve(np.array([.5, .9, .9, .1]), np.array([True, True, False, False]))
    assert curve.values.tolist() == [[.9, 2, 1, .5, .5], [.5, 3, 2, .75, 2 / 3], [.1, 4, 2, 1., .5]]


def test_path_scores_by_sets():
    rng = np.random.default_rng(0)
    paths = ['>'.join(map(str, rng.integers(0, 3, rng.integers(1, 5)))) for _ in range(60)]
    targs, preds = rng.choice(paths, 500), rng.choice(paths, 500)
    sets = lambda p: {tuple(p.split('>')[:i + 1]) for i in range(len(p.split('>')))}
    hits = sum(len(sets(t) & sets(p)) for t, p in zip(targs, preds))
    scores = path_scores(targs, preds).loc['all']
    assert scores.precision == pytest.approx(hits / sum(len(sets(p)) for p in preds)) and scores.recall == pytest.approx(hits / sum(len(sets(t)) for t in targs))
    assert path_scores(['a/b'], ['a/c'], sep='/').accuracy.tolist() == [1, 0, 0]


@given(problems())
@settings(max_examples=200, deadline=None)
def test_rarest_is_the_original_rule(probs):
    "Everything below its category's cutoff is struck out; the largest that is left wins; where nothing is left, the rarest category"
    n, c = probs.shape
    expected = probs.sum(0, dtype=np.float64)
    struck = np.zeros((n, c))
    for j in range(c):
        curve = curve_by_hand(probs[:, j])
        if curve:
            best = max(f for f, _ in curve)
            cutoff = F1Cutoffs.fit(probs).cutoffs[j]  # of equally good cutoffs either may be taken
            assert any(q == cutoff and f >= best - 1e-9 for f, q in curve)
            struck[:, j] = np.where(probs[:, j] >= cutoff, probs[:, j], 0)
    plain = [int(row.argmax()) if row.max() > 0 else int(expected.argmin()) for row in struck]
    got = F1Cutoffs.fit_predict(probs, 'rarest')
    for row, a, b in zip(struck, plain, got): assert a == b or (row[a] == row[b] and row.max() > 0) or np.isclose(expected[a], expected[b])


def test_random_labels_bring_no_gain():
    from bpv_fastai.callbacks import judge_decisions
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 51)
    probs = rng.dirichlet(5 * share / share.sum(), 10_000)
    targs = rng.permutation((probs.cumsum(1) > rng.random((10_000, 1))).argmax(1))
    f1 = judge_decisions([(as_top_probs(probs[:5_000]), targs[:5_000]), (as_top_probs(probs[5_000:]), targs[5_000:])]).f1
    base = f1[('best wins', 'raw')]
    chance = ((np.bincount(targs) / len(targs))**2).sum()
    assert f1.max() < max(base, chance) + .01


def test_compact_form_where_much_is_left_out():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(200, .2), 4_000).astype(np.float32)
    top = TopProbs.gather([probs], 24)
    assert probs.sum() - top.values.sum() > .1 * probs.sum()
    full, short = F1Cutoffs.fit(as_top_probs(probs, 200)), F1Cutoffs.fit(top)
    for j, (a, b) in enumerate(zip(full.cutoffs, short.cutoffs)):
        if max(f for f, _ in curve_by_hand(probs[:, j])) >= 2 * top.bound: assert a == b
