"The learning rate: what `lr_find` sweeps and suggests, and each learner's own rate."
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import SGD, Adam, RAdam, ranger
from fastai.torch_core import set_seed
from hypothesis import given
from hypothesis import strategies as st

from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.optimizer import RowAdam
from bpv_fastai.train.schedule import FALL_AT_PEAK, knee


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    path = tmp_path_factory.mktemp('rate')
    return TitleDataLoaders.from_df(synthetic_catalog(900, 6, seed=3), bs=32, path=path, verbose=False)


makers = dict(lstm=partial(bpv_learner, nh=16, drop_mult=.2), qrnn=partial(bpv_learner, nh=16, cell='qrnn', drop_mult=.2),
              bag=partial(ngram_learner, n_rows=2**12, dim=16))


@given(st.lists(st.floats(.1, 9.), min_size=3, max_size=60), st.integers(0, 3), st.floats(.5, 1.))
def test_knee_against_a_loop(losses, n_nan, share):
    losses = losses + [float('nan')] * n_nan  # a sweep that ends in a divergence
    lrs = np.geomspace(.01, 10, len(losses))
    lowest = min(loss for loss in losses if loss == loss)
    if lowest == losses[0]:
        with pytest.raises(ValueError, match='does not fall'): knee(lrs, losses, len(losses), share)
        return
    for lr, loss in zip(lrs, losses):
        if loss <= losses[0] - share * (losses[0] - lowest): break
    rate, point = knee(torch.tensor(lrs), torch.tensor(losses, dtype=torch.float64), len(losses), share)
    assert rate == point[0] == lr and point[1] == loss


class Hypers(Callback):
    "Records rate and momentum of each batch"
    def __init__(self): self.rates, self.momenta = [], []
    def after_batch(self):
        self.rates.append(self.opt.hypers[-1]['lr'])
        self.momenta.append(self.opt.hypers[-1]['mom'])


@pytest.mark.parametrize('opt_func', [None, Adam])
@pytest.mark.parametrize('kind', makers)
def test_lr_find_sweeps_around_the_own_rate_and_leaves_no_trace(dls, kind, opt_func):
    hypers = Hypers()
    learn = makers[kind](dls, cbs=hypers, **({} if opt_func is None else dict(opt_func=opt_func)))
    before = {name: p.clone() for name, p in learn.model.named_parameters()}
    with learn.quiet(): suggested = learn.lr_find()
    plt.close('all')
    assert hypers.rates[0] == pytest.approx(learn.lr / 10) and max(hypers.rates) <= 10.001 * learn.lr
    assert len(hypers.rates) <= 250 and np.all(np.diff(hypers.rates) > 0)
    assert len(hypers.rates) == 250 or learn.recorder.losses[-1] > 3 * min(learn.recorder.losses)  # it diverged before
    assert set(hypers.momenta) == {learn.moms[1]}
    assert learn.lr / 10 <= suggested.knee <= 10 * learn.lr
    share = FALL_AT_PEAK['sgd' if opt_func is None else 'adam']
    losses, lrs = (np.array(values, dtype=float)[25:-5] for values in (learn.recorder.losses, learn.recorder.lrs))
    at = int(np.argmin(np.abs(lrs - suggested.knee)))
    assert losses[0] - losses[at] >= share * (losses[0] - losses.min()) - 1e-6 > losses[0] - losses[:at].min() - 2e-6
    assert all(torch.equal(before[name], p) for name, p in learn.model.named_parameters())
    assert learn.recorder.smooth_loss.beta == .98 and not hasattr(learn, 'param_scheduler')


@pytest.mark.parametrize('opt_func', [None, Adam])
@pytest.mark.parametrize('kind', makers)
def test_a_learner_learns_at_what_lr_find_suggests(dls, kind, opt_func):
    set_seed(0)
    learn = makers[kind](dls, **({} if opt_func is None else dict(opt_func=opt_func)))
    with learn.quiet():
        rate = learn.lr_find(show_plot=False).knee
        if kind == 'bag': learn.fit_flat_cos(12, rate, pct_start=0)
        else: learn.fit_one_cycle(12, rate)
    assert learn.final_record[-1] > .65


def test_a_sweep_in_which_the_loss_does_not_fall_is_said(dls):
    learn = bpv_learner(dls, nh=8)
    with learn.quiet(), pytest.raises(ValueError, match='does not fall'): learn.lr_find(1e6, 1e9, show_plot=False)
    with learn.quiet(): assert learn.lr_find(suggest_funcs=None, num_it=20, show_plot=False) is None


def test_a_sweep_of_a_trained_network_returns_its_table(dls):
    learn = ngram_learner(dls)
    with learn.quiet():
        learn.fit_flat_cos(15, pct_start=0)
        assert len(learn.lr_sweep(num_it=30)) > 5
    plt.close('all')


def test_own_rates(dls):
    assert bpv_learner(dls, nh=8).lr == bpv_learner(dls, nh=8, opt_func=SGD).lr == .8
    assert bpv_learner(dls, nh=8, opt_func=Adam).lr == bpv_learner(dls, nh=8, opt_func=ranger).lr == .008
    assert bpv_learner(dls, nh=8, opt_func=Adam, lr=.02).lr == .02
    assert ngram_learner(dls).lr == 10 * 32 / 128 and ngram_learner(dls, opt_func=Adam).lr == .008
    assert ngram_learner(dls, opt_func=Adam).opt_func is RowAdam
    with pytest.raises(ValueError, match='sparse'): ngram_learner(dls, opt_func=RAdam)


def test_sweeps_reach_the_rates_of_a_bag_and_of_adam(dls):
    for learn in (ngram_learner(dls), bpv_learner(dls, nh=8, opt_func=Adam)):
        with learn.quiet(): sweep = learn.lr_sweep(show_plot=False)
        assert sweep.lr.max() > learn.lr and (sweep.mom == learn.moms[1]).all()


def test_a_fit_without_a_rate_takes_the_own_one(dls):
    for fit in ('fit_one_cycle', 'fit_linear_cycle', 'fit_flat_cos'):
        hypers = Hypers()
        learn = bpv_learner(dls, nh=8, opt_func=Adam, cbs=hypers)
        with learn.quiet(): getattr(learn, fit)(1)
        assert max(hypers.rates) == pytest.approx(.008, rel=.05)
