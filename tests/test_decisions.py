"Calibration, cutoffs and decisions against slow and obvious references."
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpv_fastai.decide.calibration import ProbabilityCalibrator, calibration_error, probability_steps
from bpv_fastai.decide.coverage import coverage_curve, threshold_for
from bpv_fastai.decide.decider import Decider, judge_decisions, label_table
from bpv_fastai.decide.metrics import CategoryCounts
from bpv_fastai.decide.probabilities import TopProbs, as_top_probs
from bpv_fastai.decide.rules import ExpectedF1, F1Cutoffs, expected_f1
from bpv_fastai.decide.taxonomy import path_scores


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
    "Algorithm 1 for one category: (F1, cutoff) after each title; a cutoff lets all of equal probability pass"
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
    calibrated = calibrator.transform(p[:, None])[:, 0]
    assert (np.diff(calibrated) >= -1e-9).all() and np.isfinite(calibrated).all()
    assert calibrated.min() >= 0 and calibrated.max() <= 1
    steps = probability_steps(probs, targs)
    assert steps.claims.sum() == probs.size and steps.true.sum() == len(probs)


def brier_score(probs, targs):
    return ((probs - np.eye(probs.shape[1])[targs])**2).sum(1).mean()


def test_calibration_corrects_distorted_probabilities():
    rng = np.random.default_rng(0)
    exact = rng.dirichlet(np.full(40, .05), 40_000)
    targs = (exact.cumsum(1) > rng.random((40_000, 1))).argmax(1)
    for power in (.6, 1.7):
        distorted = exact**power / (exact**power).sum(1, keepdims=True)
        raw, judged = distorted[20_000:], targs[20_000:]
        calibrated = ProbabilityCalibrator().fit(distorted[:20_000], targs[:20_000]).transform(raw)
        before, after = (calibration_error(p.max(1), p.argmax(1) == judged) for p in (raw, calibrated))
        assert after < .5 * before and brier_score(calibrated, judged) < brier_score(raw, judged)


def test_calibrated_sums_of_the_compact_form():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(200, .05), 2_000)
    calibrator = ProbabilityCalibrator().fit(probs, rng.integers(0, 200, 2_000))
    compact = calibrator.transform(TopProbs.gather([probs], 24))
    assert np.allclose(compact.totals, calibrator.transform(probs).sum(0), atol=1e-6)


def test_cutoffs_and_expected_f1_raise_weighted_f1():
    rng = np.random.default_rng(3)
    share = 1 / np.arange(1, 101)
    probs = rng.dirichlet(5 * share / share.sum(), 20_000)
    targs = (probs.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    fit_on, judged = probs[:10_000], probs[10_000:]
    predictions = judged.argmax(1), F1Cutoffs.fit(fit_on).predict(judged), ExpectedF1.fit(fit_on).predict(judged)
    best, cut, direct = (CategoryCounts(100).add(targs[10_000:], p).averages()['f1'] for p in predictions)
    assert cut > best and direct > best


def test_threshold_holds_what_it_promises():
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(100):
        confidence = rng.random(5_000)
        correct = rng.random(5_000) < confidence
        t = threshold_for(confidence, correct, .9)
        kept.append(t)
    # the true precision of uniform confidences from t up is (1+t)/2
    assert np.mean((1 + np.array(kept)) / 2 >= .9) >= .95 and np.median(kept) < .9


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
    assert scores.precision == pytest.approx(hits / sum(len(sets(p)) for p in preds))
    assert scores.recall == pytest.approx(hits / sum(len(sets(t)) for t in targs))
    assert path_scores(['a/b'], ['a/c'], sep='/').accuracy.tolist() == [1, 0, 0]


@given(problems())
@settings(max_examples=200, deadline=None)
def test_rarest_is_the_original_rule(probs):
    "What lies below its category's cutoff is struck out; the largest left wins, or else the rarest category"
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
    got = F1Cutoffs.fit(probs, 'rarest').predict(probs)
    for row, a, b in zip(struck, plain, got):
        assert a == b or (row[a] == row[b] and row.max() > 0) or np.isclose(expected[a], expected[b])


def test_random_labels_bring_no_gain():
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 51)
    probs = rng.dirichlet(5 * share / share.sum(), 10_000)
    targs = rng.permutation((probs.cumsum(1) > rng.random((10_000, 1))).argmax(1))
    f1 = judge_decisions([(as_top_probs(probs[half]), targs[half]) for half in (slice(5_000), slice(5_000, None))]).f1
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


def test_refusals():
    probs = np.array([[.7, .3], [.4, .6]])
    for wrong, why in ((probs * 9, 'logits'), (probs * np.nan, 'NaN'), (probs[0], r'\(titles, categories\)')):
        with pytest.raises(ValueError, match=why): as_top_probs(wrong)
    with pytest.raises(ValueError, match='no probabilities'): TopProbs.gather([])
    with pytest.raises(ValueError, match='same shape'): TopProbs(probs, np.zeros((2, 1)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="'argmax', 'rarest' or 'abstain'"): F1Cutoffs.fit(probs, fallback='guess')
    with pytest.raises(ValueError, match='2 titles'): probability_steps(probs, [0])
    with pytest.raises(ValueError, match=r'fit\(probs, targs\)'): ProbabilityCalibrator().plot()
    with pytest.raises(ValueError, match='rise from 0 to 1'): ProbabilityCalibrator(knots=(.1, 1))
    with pytest.raises(ValueError, match='between 0 and 1'): threshold_for(probs[:, 0], [True, False], precision=1)
    with pytest.raises(ValueError, match='the same length'): path_scores(['a'], [])
    assert threshold_for(np.array([]), np.array([])) == np.inf


def test_calibration_of_a_compact_form_that_does_not_suffice():
    calibrator = ProbabilityCalibrator()
    short = TopProbs.gather([np.full((5, 9), 1 / 9)], k=8)
    with pytest.raises(ValueError, match='larger k'): calibrator.transform(short)
    top = as_top_probs(np.eye(3))
    with pytest.raises(ValueError, match='calibrated already'): calibrator.transform(calibrator.transform(top))


def fitted(rule=None):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(30, .05), 600)
    targs = (probs.cumsum(1) > rng.random((600, 1))).argmax(1)
    decider = Decider.fit([(as_top_probs(probs[half]), targs[half]) for half in (slice(300), slice(300, None))], .9)
    return probs, Decider(decider.calibrator, rule or decider.rule, decider.thresholds)


def test_deciders_come_back_from_json():
    probs, _ = fitted()
    for rule in (None, ExpectedF1(np.ones(30), np.zeros(30), F1Cutoffs.fit(probs, 'rarest'))):
        _, decider = fitted(rule)
        decider.thresholds = dict(f1=np.inf, best=.9)
        same = Decider.from_dict(json.loads(json.dumps(decider.to_dict(), allow_nan=False)), 30)
        assert same.thresholds == decider.thresholds and same.k == decider.k
        for kind in Decider.rules:
            for a, b in zip(decider.decide(probs, kind), same.decide(probs, kind)): assert np.array_equal(a, b)


wrong_decisions = [
    dict(k=True), dict(k=19), dict(k=10**9), dict(k='32'), dict(knots=[0., 1.]), dict(knots=[0.]), dict(knots=None),
    dict(knots=[.1 * i for i in range(10)]), dict(slope=[1.]), dict(slope=[None] * 30),
    dict(offset=[float('nan')] * 30), dict(offset=[1e30] * 30), dict(offset=[10**400] * 30),
    dict(ratios='many'), dict(ratios=[True] * 10),
    dict(fallback='none'), dict(fallback=None), dict(totals=None), dict(cutoffs=[1.]), dict(cutoffs='x'),
    dict(thresholds={}), dict(thresholds=dict(f1=1, best='x')), dict(thresholds=dict(f1=1, best=1, worst=1))]


@pytest.mark.parametrize('change', wrong_decisions)
def test_decisions_of_another_form_are_refused(change):
    probs, decider = fitted(ExpectedF1(np.ones(30), np.zeros(30), F1Cutoffs(np.full(30, .5), np.ones(30))))
    saved = decider.to_dict()
    with pytest.raises(ValueError): Decider.from_dict(saved | change, 30)
    with pytest.raises(ValueError): Decider.from_dict(saved, 31)
    for wrong in ([], None, 'x', {name: value for name, value in saved.items() if name != 'k'}):
        with pytest.raises(ValueError): Decider.from_dict(wrong, 30)


def test_the_table_of_labels():
    probs, decider = fitted()
    vocab, n = [f'c{i}' for i in range(30)], 50
    reasons = ['' if i % 5 else 'missing' for i in range(n)]
    labelled = np.flatnonzero([not reason for reason in reasons])
    top = as_top_probs(probs[labelled])
    index = pd.RangeIndex(100, 100 + n)
    table = label_table(range(n), top, decider, vocab, top_k=40, reasons=reasons, index=index)
    ids, confidence, accepted = decider.decide(probs[labelled])
    assert table.index.equals(index) and table.shape == (n, 4 + 2 * 30 + 1)
    assert table.category.iloc[labelled].tolist() == [vocab[i] for i in ids]
    assert np.array_equal(table.confidence.iloc[labelled], confidence.astype(np.float32))
    assert table.accepted.iloc[labelled].tolist() == accepted.tolist()
    none = table[table.reason != '']
    assert len(none) == 10 and none.category.isna().all() and none.confidence.isna().all() and not none.accepted.any()
    shown = table[[f'probability_{j}' for j in range(1, 31)]].iloc[labelled].to_numpy()
    assert (np.diff(shown, axis=1) <= 0).all()
    assert np.array_equal(shown, np.sort(decider.calibrator.transform(probs[labelled]), 1)[:, ::-1].astype(np.float32))
    assert 'category_1' not in label_table(range(len(top)), top, decider, vocab)
    assert len(label_table([], top[:0], decider, vocab)) == len(label_table([], top[:0], Decider(), vocab)) == 0
    best = label_table(range(len(top)), top, decider, vocab, rule='best', min_confidence=.5)
    assert best.accepted.equals(best.confidence >= .5)
    for rule in ('f1', 'lucky'):
        with pytest.raises(ValueError): label_table(range(len(top)), top, Decider(), vocab, rule=rule)


def overconfident_answers(rng, n):
    "Probabilities of which 70% are nearly sure, to the power 4, and labels drawn from what they were before"
    exact = rng.dirichlet(np.full(30, .1), n)
    best = np.eye(30)[exact.argmax(1)]
    sure = (1 - .003 * rng.exponential(1, (n, 1))) * best
    exact = np.where(rng.random((n, 1)) < .7, sure, exact)
    others = rng.dirichlet(np.full(30, .2), n) * (1 - best)
    exact += others / others.sum(1, keepdims=True) * (1 - exact.sum(1, keepdims=True)).clip(0)
    targs = (exact.cumsum(1) > rng.random((n, 1))).argmax(1)
    return (exact**4 / (exact**4).sum(1, keepdims=True)).astype(np.float32), targs


@pytest.mark.parametrize('seed', range(6))
def test_what_is_accepted_of_an_overconfident_network_is_as_promised(seed):
    "As many of the fresh titles are accepted as of those of the fit, and 98% of them are right"
    rng = np.random.default_rng(seed)
    probs, targs = overconfident_answers(rng, 1_000)
    decider = Decider.fit([(as_top_probs(probs[half]), targs[half]) for half in (slice(500), slice(500, None))])
    fresh, fresh_targs = overconfident_answers(rng, 40_000)
    assert calibration_error(fresh.max(1), fresh.argmax(1) == fresh_targs) > .05  # overconfident indeed
    for rule in Decider.rules:
        promised = decider.decide(probs, rule)[2].mean()
        preds, confidence, accepted = decider.decide(fresh, rule)
        assert promised > .6 and abs(accepted.mean() - promised) < .06
        assert (preds == fresh_targs)[accepted].mean() >= .98


def test_scores_and_weights_come_back_from_json():
    rng = np.random.default_rng(0)
    probs, targs = overconfident_answers(rng, 200)
    decider = Decider.fit([(as_top_probs(probs[half]), targs[half]) for half in (slice(100), slice(100, None))])
    decider.weights = 2**32 - 1
    saved = json.loads(json.dumps(decider.to_dict()))
    same = Decider.from_dict(saved, 30)
    pd.testing.assert_frame_equal(same.table, decider.table)
    assert same.weights == decider.weights and same.to_dict() == saved
    for name in ('table', 'weights'): saved.pop(name)  # as before these were kept
    assert Decider.from_dict(saved, 30).table is None
    for wrong in (dict(table=[{}]), dict(table='x'), dict(weights='x')):
        with pytest.raises(ValueError): Decider.from_dict(saved | wrong, 30)
