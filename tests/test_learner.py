"Learners on unusual catalogs, and what a fastai user tries with a learner of titles."
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import load_learner
from fastai.torch_core import set_seed

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.errors import CatalogError, CategorizerError, TitleWarning, TrainingDiverged
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.decide.decider import Decider
from bpv_fastai.decide.metrics import CategoryCounts
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.models.ngrams import ngram_sizes
from bpv_fastai.train.loaders import TitleDataLoaders


def titles(n, make, n_categories=3):
    return pd.DataFrame(dict(title=[make(i) for i in range(n)], category=[f'c{i % n_categories}' for i in range(n)]))


def train(df, **kwargs):
    learn = bpv_learner(TitleDataLoaders.from_df(df, bs=32, verbose=False, **kwargs), nh=8)
    with learn.quiet(): learn.fit_one_cycle(1, .1)
    return learn


unusual_titles = {
    'one character': lambda i: chr(97 + i % 26),
    'digits': str,
    'emoji': lambda i: '😀' * (i % 5 + 1),
    'right to left': lambda i: 'زيت زيتون ' + str(i),
    'unusual spaces': lambda i: f'line\u2028{i}\r\n\t',
    'astral': lambda i: ' ' + chr(0x1f000 + i),
}


@pytest.mark.parametrize('make', unusual_titles.values(), ids=unusual_titles)
def test_unusual_titles_train(make):
    learn = train(titles(60, make))
    assert np.isfinite(learn.final_record[:2]).all()
    category, _, probs = learn.predict(make(3))
    assert category in learn.dls.vocab and probs.isfinite().all()


class FirstTitles(Callback):
    "Keeps the first titles of each epoch"
    run_valid = False
    def __init__(self): self.epochs = []
    def before_batch(self):
        if self.iter == 0: self.epochs.append(self.dls.train.decode_batch((self.xb[0],), 5))


def test_learners_with_one_seed_train_alike_on_the_same_loaders():
    dls = TitleDataLoaders.from_df(synthetic_catalog(300, 4), bs=32, verbose=False)
    def trained():
        set_seed(3)
        learn = bpv_learner(dls, nh=8)
        with learn.quiet(): learn.fit(2, .5)
        return learn
    first, with_one = trained(), [p.clone() for p in trained().model.parameters()]
    with first.quiet(): first.get_preds(dl=dls.train)
    next(iter(dls.train))
    assert all(torch.equal(a, b) for a, b in zip(with_one, trained().model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(with_one, first.model.parameters()))


def test_each_epoch_of_a_learner_has_an_order_of_its_own_and_a_search_uses_none():
    dls = TitleDataLoaders.from_df(synthetic_catalog(300, 4), bs=32, verbose=False)
    def orders(search):
        learn, seen = bpv_learner(dls, nh=8), FirstTitles()
        with learn.quiet():
            if search: learn.lr_sweep(show_plot=False)
            learn.fit(2, .1, cbs=seen)
            learn.fit(1, .1, cbs=seen)
        return seen.epochs
    plain = orders(False)
    assert len({str(titles) for titles in plain}) == 3 and orders(True) == plain


def test_a_huge_title_is_cut_with_one_warning():
    df = titles(60, lambda i: 'y' * 100_000 if i % 4 == 1 else f'title {i}')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        learn = train(df, valid_pct=.3)
    assert len([w for w in caught if 'cut' in str(w.message)]) == 1
    assert max(x.shape[1] for x, _ in [*learn.dls.train, *learn.dls.valid]) == 514


def test_numbers_as_categories():
    df = titles(60, lambda i: f'title {i}').assign(category=np.arange(60) % 4)
    assert train(df).predict('title 9')[0] in list('0123')


def test_fewer_titles_than_a_batch():
    learn = train(titles(6, lambda i: f'title {i}'), valid_pct=.4)
    assert len(learn.dls.train) == 1 and np.isfinite(learn.final_record[1])


def test_same_seed_same_network():
    df = synthetic_catalog(600, 5)
    weights = []
    for _ in range(2):
        set_seed(3)
        weights.append([p.clone() for p in train(df, seed=1).model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights))


def test_it_learns():
    set_seed(0)
    df = synthetic_catalog(4_000, 8, label_noise=0)
    learn = bpv_learner(TitleDataLoaders.from_df(df, bs=32, verbose=False), nh=32)
    with learn.quiet(): learn.fit_linear_cycle(5, 1.)
    targs = learn.dls.valid_ds.targets
    assert learn.final_record[-1] > CategoryCounts(8).add(targs, np.zeros_like(targs)).averages()['f1'] + .3


def test_refused_views():
    dls = TitleDataLoaders.from_df(synthetic_catalog(300, 4), verbose=False)
    with pytest.raises(ValueError, match='one of last, avg, max, min'): bpv_learner(dls, nh=8, views=('mean',))


def test_callbacks_and_precision_chain():
    learn = train(synthetic_catalog(300, 4))
    def has_mixed_precision(): return any(isinstance(cb, MixedPrecision) for cb in learn.cbs)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a processor that only emulates bfloat16
        assert learn.to_bf16() is learn
        if learn.dls.device.type == 'cuda': assert has_mixed_precision()
        else: assert learn.model.autocast == torch.bfloat16
        with learn.quiet(): learn.fit_linear_cycle(1, .1)
        assert learn.to_fp32() is learn
    assert not has_mixed_precision() and learn.model.autocast is None


def test_callbacks_alone_as_classes_or_in_lists(tmp_path):
    dls = TitleDataLoaders.from_df(synthetic_catalog(300, 4), bs=32, verbose=False, path=tmp_path)
    learn = bpv_learner(dls, nh=8, cbs=SaveModelCallback(monitor='weighted_f1'))
    with learn.quiet(): learn.fit_linear_cycle(1, .1, cbs=SaveModelCallback)
    assert (tmp_path/'models'/'model.pth').exists()


def test_callbacks_share_no_name_with_the_learner():
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='You are shadowing an attribute')
        train(synthetic_catalog(300, 4))


def test_divergence_is_one_sentence_and_leaves_a_working_learner():
    learn = train(synthetic_catalog(300, 4))
    with pytest.raises(TrainingDiverged) as e, learn.no_bar(): learn.fit(1, 1e5)
    assert '\n' not in str(e.value) and 'lower peak rate' in str(e.value)
    assert learn.logger is print


def test_quiet_shows_nothing_and_restores_bar_and_logging(capsys):
    learn = bpv_learner(TitleDataLoaders.from_df(synthetic_catalog(400, 4), bs=32, verbose=False), nh=8)
    with learn.quiet() as same: learn.fit(1, .1)
    assert same is learn and capsys.readouterr().out == ''
    assert learn.logger is print and hasattr(learn, 'progress')
    with pytest.raises(ZeroDivisionError), learn.quiet(): 1 / 0
    assert learn.logger is print and hasattr(learn, 'progress')
    with learn.no_bar(): learn.fit(1, .1)
    assert 'expected F1' in capsys.readouterr().out


def test_without_validation_titles_there_is_nothing_to_show():
    learn = train(synthetic_catalog(300, 4), valid_pct=0)
    with learn.quiet(), pytest.raises(ValueError, match='no titles'): learn.show_results()
    with learn.quiet(), pytest.raises(ValueError, match='no titles'): learn.get_preds()


def test_a_plot_needs_a_fit():
    learn = train(synthetic_catalog(300, 4))
    assert [ax.get_ylabel() for ax in learn.plot_training()] == ['loss', 'learning rate']
    with learn.quiet(): learn.validate()
    with pytest.raises(ValueError, match='after a fit'): learn.plot_training()


@pytest.mark.filterwarnings('ignore')
def test_export_and_load(tmp_path):
    df = synthetic_catalog(300, 4)
    learn = train(df, path=tmp_path)
    with learn.quiet(): expected = learn.get_preds(dl=learn.dls.test_dl(df))[0]
    learn.export()
    again = load_learner(tmp_path/'export.pkl')
    assert (tmp_path/'export.pkl').stat().st_size < 3_000_000
    with again.quiet(): assert torch.allclose(again.get_preds(dl=again.dls.test_dl(df))[0], expected, atol=1e-6)
    assert again.predict('a title')[0] in again.dls.vocab
    with pytest.raises(ValueError, match='a loaded learner have none'): again.get_preds()
    with pytest.raises(ValueError, match='a loaded learner comes without them'): again.fit(1)
    with pytest.raises(TypeError, match='a list of titles'): again.decide('a title')


def test_decisions_survive_and_refuse(tmp_path):
    learn = train(synthetic_catalog(400, 4), path=tmp_path)
    table = learn.f1_calibration.table
    assert table.shape == (8, 3) and table.notna().all().all()
    df = learn.decide(pd.DataFrame(dict(title=['b', 'a'] * 40), index=range(100, 180)), top_k=9)
    assert df.index.tolist() == list(range(100, 180)) and df.title.tolist() == ['b', 'a'] * 40
    assert 'category_4' in df and 'category_5' not in df
    assert (df.probability_1 >= df.probability_2).all() and df.accepted.dtype == bool
    with pytest.raises(ValueError, match="'f1' or 'best'"): learn.decide(['a'], rule='lucky')
    with pytest.raises(ValueError, match='nothing is calibrated'): bpv_learner(learn.dls, nh=8).decide(['a'])
    everything = train(synthetic_catalog(300, 4), valid_pct=0)
    with pytest.raises(ValueError, match='nothing is calibrated'): everything.decide(['a'])


def test_refused_titles_to_decide():
    learn = train(synthetic_catalog(400, 4))
    with pytest.raises(CatalogError, match='no titles'): learn.decide([])
    with pytest.raises(CatalogError, match='missing'): learn.decide(['a title', None])


def test_decisions_are_those_of_the_predictions():
    learn = train(synthetic_catalog(400, 4))
    new = [t for t, _ in learn.dls.valid_ds]
    with learn.quiet(): probs = learn.get_preds(dl=learn.dls.test_dl(new))[0].numpy()
    for rule in ('f1', 'best'):
        ids, confidence, accepted = learn.decider.decide(probs, rule)
        df = learn.decide(new, rule=rule)
        assert df.category.tolist() == list(learn.dls.vocab.decode(ids)) and df.accepted.tolist() == accepted.tolist()
        assert np.allclose(df.confidence, confidence, atol=1e-5)


def test_a_learner_without_calibration_has_an_unfitted_decider():
    learn = bpv_learner(TitleDataLoaders.from_df(synthetic_catalog(300, 4), verbose=False), nh=8)
    assert not learn.decider.is_fitted
    learn.remove_cb(learn.f1_calibration)
    assert isinstance(learn.decider, Decider) and not learn.decider.is_fitted


def test_fit_leaves_the_recorder_as_it_was():
    learn = train(synthetic_catalog(400, 4))
    assert len(learn.recorder.losses) == len(learn.dls.train) and len(learn.recorder.values) == 1
    assert learn.f1_calibration.table is not None


def test_a_bag_weighs_its_ngrams_once():
    dls = TitleDataLoaders.from_df(synthetic_catalog(400, 4), bs=32, verbose=False)
    learn = ngram_learner(dls, dim=8)
    assert learn.model.config['n_rows'] == ngram_sizes(300)['n_rows'] and (learn.model.weights[1:] == 1).all()
    assert learn.lr == 10 * 32 / 128
    with learn.quiet(): learn.fit(1, .1)
    weights = learn.model.weights.clone()
    assert (weights[1:] > 1).all()
    learn.dls = learn.dls.with_train(learn.dls.valid_ds)
    with learn.quiet(): learn.fit(1, .1)
    assert torch.equal(learn.model.weights, weights)


def test_the_most_probable_category_is_shown_with_top_k_of_one():
    learn = bpv_learner(TitleDataLoaders.from_df(synthetic_catalog(400, 5), bs=32, verbose=False), nh=8)
    with learn.quiet(): learn.fit(1, .1)
    columns = [list(learn.decide(['olive oil'], top_k=k).columns[4:]) for k in (0, 1)]
    assert columns == [[], ['category_1', 'probability_1']]


def decisions(learn):
    "The learner's decisions as numbers, or None, and whether it warned"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        decider = learn.decider
    said = [str(w.message) for w in caught if isinstance(w.message, TitleWarning)]
    assert all('fitted for other weights' in s and 'learn.f1_calibration.calibrate()' in s for s in said)
    return decider.to_dict() if decider.is_fitted else None, bool(said)


class Interrupt(Callback):
    order = 55
    def after_batch(self):
        if self.training and self.iter == 2: raise KeyboardInterrupt


def interrupted(learn):
    with pytest.raises(KeyboardInterrupt), learn.quiet(): learn.fit(1, .1, cbs=Interrupt())


def diverged(learn):
    with pytest.raises(TrainingDiverged), learn.quiet(): learn.fit(1, 1e5)


def by_hand(learn): learn.model.load_state_dict({name: w + .01 for name, w in learn.model.state_dict().items()})


def without_validation(learn):
    learn.dls = TitleDataLoaders.from_dsets(learn.dls.train_ds, learn.dls.valid_ds.new_empty(), bs=32)
    with learn.quiet(): learn.fit(1, .1)


@pytest.mark.parametrize('change', [interrupted, diverged, by_hand, without_validation])
def test_decisions_of_other_weights_are_not_used(change):
    learn = train(synthetic_catalog(400, 4))
    weights = {name: w.clone() for name, w in learn.model.state_dict().items()}
    before = decisions(learn)
    assert before[0] is not None and before[1] is False
    change(learn)
    assert decisions(learn) == (None, True)
    with pytest.warns(TitleWarning), pytest.raises(ValueError, match='nothing is calibrated'): learn.decide(['a title'])
    with pytest.warns(TitleWarning): assert not learn.decide(['a title'], rule='best').accepted.any()
    if change is not diverged:
        with pytest.warns(TitleWarning): cat = Categorizer.from_learner(learn)
        assert not cat.decider.is_fitted and cat.report['scores'] == {}
    learn.model.load_state_dict(weights)
    assert decisions(learn) == before


def test_decisions_are_saved_and_loaded_with_weights(tmp_path):
    learn = train(synthetic_catalog(400, 4), path=tmp_path)
    new, one = [t for t, _ in learn.dls.valid_ds], decisions(learn)
    decided = learn.decide(new)
    learn.save('one')
    with learn.quiet(): learn.fit(1, .5)
    two = decisions(learn)
    learn.save('two')
    assert None not in (one[0], two[0]) and one != two
    assert decisions(learn.load('one')) == one and learn.decide(new).equals(decided)
    assert decisions(bpv_learner(learn.dls, nh=8).load('two')) == two
    table = learn.load('one').f1_calibration.table
    assert table.shape == (8, 3) and table.index.names == ['decision', 'probabilities']
    by_hand(learn)
    learn.save('one')  # the file of decisions, which were for other weights, goes
    assert sorted(p.name for p in (tmp_path/'models').iterdir()) == ['one.pth', 'two.decisions.json', 'two.pth']
    assert decisions(learn.load('two')) == two
    (tmp_path/'models'/'one.pth').replace(tmp_path/'models'/'two.pth')
    assert decisions(learn.load('two')) == (None, True)
    with (tmp_path/'open').open('wb') as f: learn.save(f)
    with (tmp_path/'open').open('rb') as f: assert decisions(learn.load(f)) == (None, True)


@pytest.mark.parametrize('damage', [lambda text: text[:50], lambda text: '[]', lambda text: '\x00',
                                    lambda text: text.replace('"slope": [', '"slope": [1.0, ')])
def test_damaged_decisions_are_named(tmp_path, damage):
    learn = train(synthetic_catalog(400, 4), path=tmp_path)
    learn.save('one')
    path, before = tmp_path/'models'/'one.decisions.json', decisions(learn)
    path.write_text(damage(path.read_text()))
    with pytest.raises(CategorizerError, match='one.decisions.json: damaged, or not for this learner: .*Remove'): learn.load('one')
    assert decisions(learn) == before
    path.unlink()
    assert decisions(bpv_learner(learn.dls, nh=8).load('one')) == (None, False)


def test_decisions_stay_where_weights_come_back(tmp_path):
    learn = train(synthetic_catalog(400, 4), path=tmp_path)
    before = decisions(learn)
    with learn.quiet():
        learn.lr_find(show_plot=False)
        learn.lr_sweep(show_plot=False)
        learn.validate()
    assert before[0] is not None and decisions(learn) == before
    assert decisions(learn.to_fp32()) == before
    with learn.quiet(): learn.fit(2, 1., cbs=SaveModelCallback(monitor='weighted_f1'))
    best = decisions(learn)  # of the best epoch
    assert best[1] is False and best[0] is not None and best != before and decisions(learn.load('model')) == best


@pytest.mark.filterwarnings('ignore:load_learner')
def test_decisions_are_exported_with_weights(tmp_path):
    learn = train(synthetic_catalog(400, 4), path=tmp_path)
    learn.export()
    assert decisions(load_learner(tmp_path/'export.pkl')) == decisions(learn)
    by_hand(learn)
    learn.export()
    assert decisions(load_learner(tmp_path/'export.pkl')) == (None, True)
