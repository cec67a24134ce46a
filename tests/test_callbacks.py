"Schedules, callbacks and interpretation on small learners."
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.progress import ProgressCallback  # adds `no_bar`
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from torch.nn import functional as F

from bpv_fastai.data.catalog import title_keys
from bpv_fastai.data.errors import TrainingDiverged
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.decide.decider import Decider
from bpv_fastai.decide.metrics import CategoryCounts
from bpv_fastai.decide.probabilities import as_top_probs
from bpv_fastai.interpret import TitleInterpretation
from bpv_fastai.learner import bpv_learner
from bpv_fastai.models.network import TitleClassifier
from bpv_fastai.train import callbacks
from bpv_fastai.train.callbacks import F1Calibration, StopAtDivergence, WeightedF1, best_preds
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.schedule import LinearLRFinder, linear_cycle


def learner(n=400, valid_pct=.25, **kwargs):
    set_seed(1)
    dls = TitleDataLoaders.from_df(synthetic_catalog(n, 4), bs=32, valid_pct=valid_pct, verbose=False)
    return Learner(dls, TitleClassifier(len(dls.char_vocab), dls.c, nh=8), opt_func=SGD, **kwargs)


def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn


def test_refused_schedules():
    with pytest.raises(ValueError, match='pct_up is 0.6'): linear_cycle(pct_up=.6)


def test_a_sweep_rises_in_a_straight_line():
    finder = LinearLRFinder(end_lr=3., num_it=200, mom=.9)
    assert [finder.scheds['lr'](p) for p in (0, .5, 1)] == [0, 1.5, 3] and finder.scheds['mom'](.3) == .9
    assert 'mom' not in LinearLRFinder().scheds


def test_a_sweep_neither_calibrates_nor_counts_as_divergence(tmp_path):
    learn = learner(cbs=[F1Calibration(), StopAtDivergence(every=1, factor=1.)], path=tmp_path)
    before = [p.clone() for p in learn.model.parameters()]
    fit(learn, 3, cbs=LinearLRFinder(end_lr=50., num_it=20, stop_div=False))
    assert learn.f1_calibration.table is None and learn.stop_at_divergence.error is None
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))


def test_divergence_stops_the_fit_and_skips_the_calibration():
    learn = fit(learner(cbs=[F1Calibration(), StopAtDivergence()]), 1, 1e5)
    error = learn.stop_at_divergence.error
    assert isinstance(error, TrainingDiverged) and 'lower peak rate' in str(error) and '\n' not in str(error)
    assert not learn.f1_calibration.decider.is_fitted
    fit(learn, 0)
    assert learn.stop_at_divergence.error is None


def test_a_fit_that_ends_worse_than_guessing_has_diverged():
    "Also where the loss never was 100 times the first"
    learn = fit(learner(cbs=StopAtDivergence(every=1, factor=1e9)), 1, 1e3)
    assert 'that of guessing is 1.39' in str(learn.stop_at_divergence.error)
    assert fit(learner(cbs=StopAtDivergence(every=1)), 1, .1).stop_at_divergence.error is None


def test_too_few_titles_for_decisions_are_said(capsys):
    learn = fit(learner(60, cbs=F1Calibration()), 1, .1)
    assert not learn.f1_calibration.decider.is_fitted
    assert 'no decisions for F1: fewer than 20 different validation titles' in capsys.readouterr().out


def reference_halves(learn, k):
    "Both halves gathered in one slow loop"
    dl = learn.dls.valid
    in_second = np.random.default_rng(0).permutation(len(dl.dataset)) % 2 == 1
    with torch.no_grad(): parts = [(learn.model.eval()(x).softmax(-1).numpy(), y.numpy()) for x, y in dl]
    probs, targs = (np.concatenate(column) for column in zip(*parts))
    return [(as_top_probs(probs[half], k), targs[half]) for half in (~in_second, in_second)]


def test_the_decider_is_fitted_on_two_halves_of_the_validation_titles():
    learn = fit(learner(cbs=F1Calibration()), 2, .5)
    decider, expected = learn.f1_calibration.decider, Decider.fit(reference_halves(learn, 32), .98, 32)
    assert decider.table.shape == (8, 3) and decider.table.equals(expected.table)
    mine, theirs = decider.to_dict(), expected.to_dict()
    assert mine['thresholds'] == theirs['thresholds'] and mine['k'] == 32
    assert np.allclose(mine['ratios'], theirs['ratios'], atol=1e-6)


def test_copies_of_a_title_are_in_one_half(monkeypatch):
    learn = learner(cbs=F1Calibration(verbose=False))
    df = synthetic_catalog(60, 4)
    dl = learn.dls.test_dl(pd.concat([df, df.assign(title=df.title.str.upper()), df], ignore_index=True), with_labels=True)
    kept = {}
    monkeypatch.setattr(Decider, 'fit', classmethod(lambda cls, halves, *args: kept.update(halves=halves) or Decider()))
    in_order = [title for b in dl for title, _ in dl.decode_batch(b, dl.bs)]
    monkeypatch.setattr(callbacks, 'map_outputs', lambda model, batches, f: (part[None] for part in callbacks.cut_batches(positions, dl.bs)))
    monkeypatch.setattr(callbacks, 'TopProbsGatherer', Rows)
    positions = np.arange(180)
    learn.f1_calibration.calibrate(dl)
    keys = title_keys(in_order)
    first, second = (set(keys[rows]) for rows, _ in kept['halves'])
    assert not first & second and len(first) == len(second) == 30 and sum(len(targs) for _, targs in kept['halves']) == 180


class Rows(list):
    "Gathers the positions of titles in place of their probabilities"
    def __init__(self, k): super().__init__()
    def add(self, rows): self.extend(rows)
    def result(self): return np.array(self)


def test_twenty_copies_of_one_title_are_too_few_to_calibrate():
    df = synthetic_catalog(400, 4).assign(check=False)
    same = pd.DataFrame(dict(title=['Tea', 'tea!'] * 20, category=df.category[0], check=True))
    dls = TitleDataLoaders.from_df(pd.concat([df, same], ignore_index=True), valid_col='check', bs=32, verbose=False)
    learn = Learner(dls, TitleClassifier(len(dls.char_vocab), dls.c, nh=8), opt_func=SGD, cbs=F1Calibration())
    assert not fit(learn, 1, .1).f1_calibration.decider.is_fitted


def test_modes_and_recorder_stay_as_they_were():
    learn = fit(learner(cbs=F1Calibration()), 1, .5)
    assert len(learn.recorder.losses) == len(learn.dls.train) and len(learn.recorder.values) == 1
    learn.model.train()
    with learn.no_bar():
        best_preds(learn)
        learn.f1_calibration.verbose = False
        learn.f1_calibration.calibrate()
    assert learn.model.training and len(learn.recorder.losses) == len(learn.dls.train)


def test_few_validation_titles_are_not_calibrated():
    learn = fit(learner(60, cbs=F1Calibration()), 1, .1)
    assert len(learn.dls.valid_ds) < 20 and not learn.f1_calibration.decider.is_fitted
    everything = fit(learner(valid_pct=0, cbs=F1Calibration()), 1, .1)
    with pytest.raises(ValueError, match='nothing is calibrated'): everything.f1_calibration.decider.decide(np.eye(4))


@pytest.mark.filterwarnings('error::UserWarning')
def test_a_fit_of_bpv_learner_warns_of_nothing():
    learn = bpv_learner(learner().dls, nh=8)
    with learn.quiet(): learn.fit(1, .1)
    assert learn.decider is learn.f1_calibration.decider and learn.decider.is_fitted


def test_what_silences_table_and_bar(capsys):
    learn = learner(cbs=F1Calibration())
    fit(learn, 1, .1)
    assert capsys.readouterr().out == ''
    with learn.no_bar(): learn.fit(1, .1)
    assert 'best wins' in capsys.readouterr().out
    with learn.no_logging(): learn.fit(1, .1)
    assert 'best wins' not in capsys.readouterr().out
    learn.f1_calibration.verbose = False
    with learn.no_bar(): learn.fit(1, .1)
    assert 'best wins' not in capsys.readouterr().out


def test_calibration_on_other_titles():
    learn = learner(cbs=F1Calibration(verbose=False))
    dl = learn.dls.test_dl(synthetic_catalog(400, 4), with_labels=True)
    with learn.no_bar(): learn.f1_calibration.calibrate(dl)
    best = best_preds(learn, dl=dl)
    f1 = CategoryCounts(4).add(best['targs'], best['preds']).averages()['f1']
    assert learn.f1_calibration.table.f1['best wins', 'raw'] == pytest.approx(f1)


@pytest.mark.parametrize('autocast', [None, torch.bfloat16])
def test_best_preds_are_those_of_get_preds(autocast):
    learn = fit(learner(), 1, .5)
    learn.model.autocast = autocast
    with learn.no_bar():
        best = best_preds(learn)
        probs, targs, losses = learn.get_preds(with_loss=True)
    assert best['preds'].tolist() == probs.argmax(1).tolist() and best['targs'].tolist() == targs.tolist()
    assert np.allclose(best['probs'], probs.max(1)[0], atol=1e-6) and np.allclose(best['losses'], losses, atol=1e-5)


def test_best_preds_without_labels_and_of_a_shuffled_loader():
    learn = learner()
    with learn.no_bar():
        unlabelled = best_preds(learn, dl=learn.dls.test_dl(['one title', 'another']))
        assert unlabelled['targs'].tolist() == [-1, -1] and unlabelled['losses'].tolist() == [0, 0]
        assert best_preds(learn, ds_idx=0)['targs'].tolist() == learn.dls.train_ds.targets.tolist()


def test_interpretation_agrees_with_predictions():
    learn = fit(learner(300), 1, .1)
    with learn.no_bar():
        interp = TitleInterpretation.from_learner(learn)
        preds, targs = learn.get_preds()
    assert sum(n for *_, n in interp.most_confused()) == (preds.argmax(1) != targs).sum()
    assert interp.confusion_matrix(list(learn.dls.vocab)).sum() == len(targs)
    losses, idxs = interp.top_losses(3, largest=False)
    assert (losses == np.sort(interp.losses)[:3]).all() and (interp.losses[idxs] == losses).all()
    assert interp.plot_confusion_matrix(k=2, normalize=False).get_xlabel() == 'predicted'


def test_refused_interpretation():
    learn = learner()
    with learn.no_bar():
        interp = TitleInterpretation.from_learner(learn)
        with pytest.raises(ValueError, match="'nothing'"): interp.confusion_matrix(['nothing'])
        unlabelled = learn.dls.test_dl(['no label'])
        with pytest.raises(ValueError, match='labelled'): TitleInterpretation.from_learner(learn, dl=unlabelled)
        everything = learner(valid_pct=0)
        with pytest.raises(ValueError, match='no titles'): TitleInterpretation.from_learner(everything)


def test_fastais_own_report_by_category(capsys):
    learn = fit(learner(300), 1, .1)
    with learn.no_bar(): ClassificationInterpretation.from_learner(learn).print_classification_report()
    printed = capsys.readouterr().out
    assert all(c in printed for c in learn.dls.vocab) and 'weighted avg' in printed


def test_the_metric_is_the_score_of_all_titles():
    learn = fit(learner(metrics=WeightedF1()), 1, .5)
    best = best_preds(learn)
    expected = CategoryCounts(4).add(best['targs'], best['preds']).averages()['f1']
    assert learn.final_record[-1] == pytest.approx(expected)
