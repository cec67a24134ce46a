"Scores against scikit-learn's."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from bpv_fastai.train.callbacks import WeightedF1, WeightedPrecision, WeightedRecall
from bpv_fastai.decide.metrics import CategoryCounts, category_report, confused_pairs

def pairs_of(c): return st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=200)
problems = st.integers(1, 12).flatmap(lambda c: st.tuples(st.just(c), pairs_of(c)))


@given(problems, st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_scores_equal_scikit_learn(problem, bs):
    c, pairs = problem
    targs, preds = np.array(pairs).T
    counts = CategoryCounts(c)
    for i in range(0, len(targs), bs): counts.add(targs[i:i + bs], preds[i:i + bs])
    each = precision_recall_fscore_support(targs, preds, labels=range(c), zero_division=0)
    for ours, theirs in zip((counts.precision, counts.recall, counts.f1), each):
        assert np.allclose(ours, theirs, atol=1e-12)
    for average in ('weighted', 'macro'):
        theirs = precision_recall_fscore_support(targs, preds, average=average, zero_division=0)[:3]
        assert np.allclose(list(counts.averages(average).values()), theirs, atol=1e-12)
    assert counts.accuracy == pytest.approx(accuracy_score(targs, preds))


@given(problems, st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_streaming_metrics_equal_scikit_learn(problem, bs):
    c, pairs = problem
    targs, preds = torch.tensor(pairs).T

    class Batch: to_detach = staticmethod(lambda o, cpu: o)
    metrics = [WeightedPrecision(), WeightedRecall(), WeightedF1()]
    for m in metrics: m.reset()
    for i in range(0, len(targs), bs):
        Batch.pred, Batch.yb = torch.nn.functional.one_hot(preds[i:i + bs], c).float(), (targs[i:i + bs],)
        for m in metrics: m.accumulate(Batch)
    theirs = precision_recall_fscore_support(targs, preds, average='weighted', zero_division=0)[:3]
    assert np.allclose([m.value for m in metrics], theirs, atol=1e-12)


@given(problems)
@settings(max_examples=100, deadline=None)
def test_confused_pairs_are_the_matrix_without_its_diagonal(problem):
    c, pairs = problem
    targs, preds = np.array(pairs).T
    cm = confusion_matrix(targs, preds, labels=range(c))
    np.fill_diagonal(cm, 0)
    table = confused_pairs(targs, preds)
    expected = {(i, j): cm[i, j] for i, j in zip(*np.nonzero(cm))}
    assert {(a, p): n for a, p, n in table.itertuples(index=False)} == expected
    assert table.n.is_monotonic_decreasing
    report = category_report(targs, preds, [f'c{i}' for i in range(c)])
    assert report.support.sum() == report.predicted.sum() == len(targs)
    assert report.support.is_monotonic_decreasing


def test_memory_is_by_titles_not_by_categories():
    rng = np.random.default_rng(0)
    targs, preds = rng.integers(0, 1_000_000, (2, 1_000))
    assert len(confused_pairs(targs, preds)) == 1_000


def test_wrong_ids_are_refused():
    for targs, preds in (([0, 3], [0, 0]), ([0, -1], [0, 0]), ([0, 1], [0, 3]), ([0, 1], [0, -2])):
        with pytest.raises(ValueError, match='below 3'): CategoryCounts(3).add(targs, preds)
    with pytest.raises(ValueError, match='the same length'): CategoryCounts(3).add([0, 1], [0])
    with pytest.raises(ValueError, match="'weighted' or 'macro'"): CategoryCounts(3).averages('micro')
    assert CategoryCounts(3).averages()['f1'] == 0
