"Odd catalogs through the whole way: each works, or fails with one clear sentence."
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner

from bpv_fastai.all import *


def titles(n, make, n_categories=3):
    return pd.DataFrame(dict(title=[make(i) for i in range(n)], category=[f'c{i % n_categories}' for i in range(n)]))


def train(df, **kwargs):
    dls = TitleDataLoaders.from_df(df, bs=32, verbose=False, **kwargs)
    learn = bpv_learner(dls, nh=8)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, .1)
    return learn


@pytest.mark.parametrize('make', [lambda i: 'x', lambda i: str(i), lambda i: '😀' * (i % 5 + 1), lambda i: 'زيت زيتون ' + str(i), lambda i: f'line\u2028{i}\r\n\t', lambda i: ' ' + chr(0x1f000 + i)],
                         ids=['one character', 'digits', 'emoji', 'right to left', 'odd spaces', 'astral'])
def test_odd_titles_train(make):
    learn = train(titles(60, make))
    assert np.isfinite(learn.final_record[:2]).all()
    category, _, probs = learn.predict(make(3))
    assert category in learn.dls.vocab and probs.isfinite().all()


def test_a_huge_title_is_cut_and_said_once():
    df = titles(60, lambda i: 'y' * 100_000 if i % 4 == 1 else f'title {i}')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn = train(df, valid_pct=.3)
    assert len([w for w in said if 'cut' in str(w.message)]) == 1
    assert max(x.shape[1] for x, _ in [*learn.dls.train, *learn.dls.valid]) == 514


def test_numbers_as_categories():
    df = titles(60, lambda i: f'title {i}').assign(category=np.arange(60) % 4)
    assert train(df).predict('title 9')[0] in list('0123')


def test_fewer_titles_than_a_batch():
    learn = train(titles(6, lambda i: f'title {i}'), valid_pct=.4)
    assert len(learn.dls.train) == 1 and np.isfinite(learn.final_record[1])


@pytest.mark.parametrize('df,says', [
    (titles(20, lambda i: f'title {i}', 1), 'one category'),
    (titles(3, lambda i: f'title {i}', 3), 'enough titles'),
    (pd.DataFrame(dict(title=['a'])), "no column 'category'"),
    (pd.DataFrame(dict(title=['a', None] * 9, category=['x', 'y'] * 9)), "row 1, column 'title': missing"),
])
def test_what_cannot_be_learned_says_why(df, says):
    with pytest.raises(CatalogError, match=says) as e: train(df)
    assert '\n' not in str(e.value)


def test_unseen_validation_category():
    df = titles(60, lambda i: f'title {i}').assign(valid=np.arange(60) % 5 == 0)
    df.loc[df.valid, 'category'] = 'new'
    with pytest.raises(CatalogError, match="12 validation titles have a category that no training title has, the first 'new' in row 0"):
        TitleDataLoaders.from_df(df, valid_col='valid', verbose=False)


def test_same_seed_same_network():
    df = synthetic_catalog(600, 5)
    from fastai.torch_core import set_seed
    scores = []
    for _ in range(2):
        set_seed(3)
        scores.append([p.clone() for p in train(df, seed=1).model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*scores))


def test_it_learns():
    from fastai.torch_core import set_seed
    set_seed(0)
    learn = bpv_learner(TitleDataLoaders.from_df(synthetic_catalog(4_000, 8, label_noise=0), bs=32, verbose=False), nh=32)
    with learn.no_bar(), learn.no_logging(): learn.fit_linear_cycle(5, 1.)
    targs = learn.dls.valid_ds.targets
    assert learn.final_record[-1] > CategoryCounts(8).add(targs, np.zeros_like(targs)).averages()['f1'] + .3


def test_callbacks_and_precision_chain():
    learn = train(synthetic_catalog(300, 4))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a processor that only imitates bfloat16
        on_gpu = learn.dls.device.type == 'cuda'
        assert learn.to_bf16() is learn and (any(isinstance(cb, MixedPrecision) for cb in learn.cbs) if on_gpu else learn.model.autocast == torch.bfloat16)
        with learn.no_bar(), learn.no_logging(): learn.fit_linear_cycle(1, .1)
        assert learn.to_fp32() is learn
    assert not any(isinstance(cb, MixedPrecision) for cb in learn.cbs) and learn.model.autocast is None


def test_callbacks_alone_as_classes_or_in_lists(tmp_path):
    from fastai.callback.tracker import SaveModelCallback
    dls = TitleDataLoaders.from_df(synthetic_catalog(300, 4), bs=32, verbose=False, path=tmp_path)
    learn = bpv_learner(dls, nh=8, cbs=SaveModelCallback(monitor='weighted_f1'))
    with learn.no_bar(), learn.no_logging(): learn.fit_linear_cycle(1, .1, cbs=SaveModelCallback)
    assert (tmp_path/'models'/'model.pth').exists()


def test_divergence_is_one_sentence_and_leaves_a_working_learner():
    learn = train(synthetic_catalog(300, 4))
    with pytest.raises(TrainingDiverged) as e, learn.no_bar(): learn.fit(1, 1e5)
    assert '\n' not in str(e.value) and 'halve' in str(e.value)
    assert learn.logger is print


def test_training_on_everything_says_so_when_asked_for_results():
    learn = train(synthetic_catalog(300, 4), valid_pct=0)
    with learn.no_bar():
        with pytest.raises(ValueError, match='no titles'): learn.show_results()
        with pytest.raises(ValueError, match='no titles'): TitleInterpretation.from_learner(learn)


@pytest.mark.filterwarnings('ignore')
def test_export_and_load(tmp_path):
    df = synthetic_catalog(300, 4)
    learn = train(df, path=tmp_path)
    with learn.no_bar(): expected = learn.get_preds(dl=learn.dls.test_dl(df))[0]
    learn.export()
    again = load_learner(tmp_path/'export.pkl')
    assert (tmp_path/'export.pkl').stat().st_size < 3_000_000
    with again.no_bar(): assert torch.allclose(again.get_preds(dl=again.dls.test_dl(df))[0], expected, atol=1e-6)
    assert again.predict('a title')[0] in again.dls.vocab
    with pytest.raises(ValueError, match='a loaded learner have none'): again.get_preds()
    with pytest.raises(TypeError, match='a list of titles'): again.decide('a title')


def test_interpretation_agrees_with_predictions():
    learn = train(synthetic_catalog(300, 4))
    with learn.no_bar():
        interp = TitleInterpretation.from_learner(learn)
        preds, targs = learn.get_preds()
    assert sum(n for *_, n in interp.most_confused()) == (preds.argmax(1) != targs).sum()
    assert interp.confusion_matrix(list(learn.dls.vocab)).sum() == len(targs)


def test_fastais_own_report_by_category(capsys):
    learn = train(synthetic_catalog(300, 4))
    with learn.no_bar(): ClassificationInterpretation.from_learner(learn).print_classification_report()
    said = capsys.readouterr().out
    assert all(c in said for c in learn.dls.vocab) and 'weighted avg' in said


def test_decisions_survive_and_refuse(tmp_path):
    learn = train(synthetic_catalog(400, 4), path=tmp_path)
    table = learn.f1_calibration.table
    assert table.shape == (8, 3) and table.notna().all().all()
    df = learn.decide(pd.DataFrame(dict(title=['b', 'a'] * 40), index=range(100, 180)), top_k=9)
    assert df.index.tolist() == list(range(100, 180)) and df.title.tolist() == ['b', 'a'] * 40 and 'category_4' in df and 'category_5' not in df
    assert (df.probability_1 >= df.probability_2).all() and df.accepted.dtype == bool
    with pytest.raises(ValueError, match="'f1' or 'best'"): learn.decide(['a'], rule='lucky')
    with pytest.raises(ValueError, match='nothing is calibrated'): bpv_learner(learn.dls, nh=8).decide(['a'])
    everything = train(synthetic_catalog(300, 4), valid_pct=0)
    with pytest.raises(ValueError, match='nothing is calibrated'): everything.decide(['a'])


def test_fit_leaves_the_recorder_as_it_was():
    learn = train(synthetic_catalog(400, 4))
    assert len(learn.recorder.losses) == len(learn.dls.train) and len(learn.recorder.values) == 1 and learn.f1_calibration.table is not None
