"What a fastai user tries with a learner of titles: it works, or one sentence says what to do instead."
import importlib
import inspect
import math
import pkgutil
import warnings

import fastai.callback
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import (SGD, Adam, Callback, FetchPredsCallback, Interpretation, SkipToEpoch, load_learner, noop,
                           set_seed, trainable_params)
from fastai.callback.all import (
    ActivationStats, BnFreeze, ChannelsLast, CollectDataCallback, CSVLogger, CutMix, EarlyStoppingCallback,
    GradientAccumulation, GradientClip, HookCallback, LRFinder, MCDropoutCallback, MixedPrecision, MixUp,
    ModelResetter, ModelToHalf, NonNativeMixedPrecision, ParamScheduler, ReduceLROnPlateau, RNNCallback,
    RNNRegularizer, SaveModelCallback, SchedLin, ShortEpochCallback, ShowGraphCallback,
    TerminateOnNaNCallback, TrackerCallback, minimum, slide, steep, valley)
from fastai.interpret import ClassificationInterpretation
from fastai.learner import before_batch_cb
from fastai.losses import FocalLossFlat, LabelSmoothingCrossEntropyFlat
from torch import nn

from bpv_fastai.data.errors import CatalogError, ResumeError
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner, ngram_learner, words_learner
from bpv_fastai.models.pooling import PoolingLinearClassifier
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.resume import Checkpoints

kinds = ['lstm', 'qrnn', 'bag', 'words']
df = synthetic_catalog(400, 4)


@pytest.fixture(autouse=True)
def new_process(tmp_path, monkeypatch):
    "Write models into a folder of the test, and number fits as a new process does"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoints, 'n_finished_fits', 0)


def learner(kind, seed=0, **kwargs):
    set_seed(seed)
    dls = TitleDataLoaders.from_df(df, bs=32, verbose=False)
    if kind == 'bag': return ngram_learner(dls, n_rows=2**12, dim=8, **kwargs)
    if kind == 'words': return words_learner(dls, n_rows=2**12, dim=8, nh=8, loss_func=dls.train_ds.loss_func, **kwargs)
    return bpv_learner(dls, nh=8, cell=kind, **kwargs)


def quietly(learn, method, *args, **kwargs):
    with learn.quiet(): return getattr(learn, method)(*args, **kwargs)


def weights(learn): return [[p.detach().clone() for p in group] for group in learn.splitter(learn.model)]


def equal(some, others): return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


# Freezing, and rates by group


@pytest.mark.parametrize('kind', kinds)
def test_freeze_trains_the_head_alone_and_unfreeze_everything(kind):
    learn = learner(kind)
    quietly(learn, 'fit', 1, .1)  # leaves gradients behind, by which weight decay would shrink frozen weights
    for freeze in (learn.freeze, lambda: learn.freeze_to(1)):
        freeze()
        before = weights(learn)
        quietly(learn, 'fit_one_cycle', 1, .1, wd=.1)
        encoder, head = weights(learn)
        assert equal(encoder, before[0]) and not equal(head, before[1])
        assert learn.summary().count('frozen up to parameter group #1') == 1
    learn.unfreeze()
    before = weights(learn)
    quietly(learn, 'fit', 1, .1)
    assert not any(equal(a, b) for a, b in zip(before, weights(learn)))


@pytest.mark.parametrize('kind', kinds)
def test_all_parameters_are_in_two_groups(kind):
    learn = learner(kind)
    encoder, head = learn.splitter(learn.model)
    assert {id(p) for p in [*encoder, *head]} == {id(p) for p in learn.model.parameters()}
    assert len(head) == 2 and len(head[1]) == learn.dls.c


@pytest.mark.parametrize('kind', kinds)
def test_slices_are_rates_by_group(kind):
    learn = learner(kind)
    rates = []
    class Rates(Callback):
        def before_step(self): rates.append([h['lr'] for h in self.opt.hypers])
    quietly(learn, 'fit', 1, slice(1e-3, .1), cbs=Rates())
    assert rates[0] == pytest.approx([1e-3, .1])
    quietly(learn, 'fit', 1, slice(.1), cbs=Rates())
    assert rates[-1] == pytest.approx([.01, .1])
    for schedule in ('fit_one_cycle', 'fit_linear_cycle', 'fit_flat_cos'):
        rates.clear()
        quietly(learn, schedule, 2, slice(1e-3, .1), cbs=Rates())
        assert max(rates)[1] == pytest.approx(.1, rel=.05)
        assert all(head == pytest.approx(100 * encoder) for encoder, head in rates)


@pytest.mark.parametrize('kind', kinds)
def test_fine_tune_trains_the_head_then_everything(kind):
    learn = learner(kind)
    seen = []
    class Look(Callback):
        order, run_valid = 70, False  # behind the schedule
        def before_fit(self): self.before = weights(self.learn)
        def after_batch(self): seen.append((learn.opt.frozen_idx, *(h['lr'] for h in self.opt.hypers)))
        def after_train(self): seen[-1] += (equal(weights(self.learn)[0], self.before[0]),)
    quietly(learn, 'fine_tune', 1, cbs=Look())
    half = len(seen) // 2
    assert [s[0] for s in seen] == [1] * half + [0] * half
    assert seen[half - 1][-1] and not seen[-1][-1]  # the encoder: as it was, then changed
    assert max(s[2] for s in seen[:half]) == pytest.approx(learn.lr, rel=.1)
    assert max(s[2] for s in seen[half:]) == pytest.approx(learn.lr / 2, rel=.1)
    assert max(s[1] for s in seen[half:]) == pytest.approx(learn.lr / 200, rel=.1)


@pytest.mark.parametrize('kind', kinds)
def test_two_groups_end_with_the_weights_of_one(kind):
    ends = []
    for one_group in (False, True):
        learn = learner(kind)
        if one_group: learn.splitter = trainable_params
        quietly(learn, 'fit_one_cycle', 2, learn.lr if kind == 'words' else .5)
        assert len(learn.opt.hypers) == 1 if one_group else 2
        ends.append(list(learn.model.state_dict().values()))
    assert equal(*ends)


class Killed(Exception): pass


class Kill(Callback):
    "Write a checkpoint after 13 of 20 batches, and end the fit without notice"
    order = 200
    def after_batch(self):
        if self.train_iter == 13:
            self.learn.checkpoints.save()
            raise Killed('now')


def frozen(kind, seed=0, freeze=True, **kwargs):
    learn = learner(kind, seed, **kwargs)
    if freeze: learn.freeze()
    return learn


@pytest.mark.parametrize('kind', kinds)
def test_a_frozen_fit_resumes_and_is_not_an_unfrozen_one(kind):
    uninterrupted = frozen(kind)
    quietly(uninterrupted, 'fit_one_cycle', 2, slice(.01, .5))
    with pytest.raises(Killed): quietly(frozen(kind), 'fit_one_cycle', 2, slice(.01, .5), cbs=Kill(), resume=True)
    with pytest.raises(ResumeError, match='frozen.*encoder|frozen.*embedding'):
        quietly(frozen(kind, freeze=False), 'fit_one_cycle', 2, slice(.01, .5), resume=True)
    with pytest.raises(ResumeError, match='schedule'):
        quietly(frozen(kind), 'fit_one_cycle', 2, slice(.02, .5), resume=True)
    resumed = frozen(kind, seed=7)
    quietly(resumed, 'fit_one_cycle', 2, slice(.01, .5), resume=True)
    assert equal(uninterrupted.model.state_dict().values(), resumed.model.state_dict().values())


def test_rates_by_group_tell_fits_apart():
    with pytest.raises(Killed): quietly(learner('lstm'), 'fit', 2, slice(.01, .5), cbs=Kill(), resume=True)
    with pytest.raises(ResumeError, match='hypers'): quietly(learner('lstm'), 'fit', 2, slice(.02, .5), resume=True)


def test_a_frozen_encoder_trains_in_bfloat16():
    dls = TitleDataLoaders.from_df(df, bs=64, verbose=False)
    learn = bpv_learner(dls, nh=256, n_layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a processor that only emulates it
        learn.to_bf16().freeze()
    before = weights(learn)
    quietly(learn, 'fit', 1, .1)
    assert equal(weights(learn)[0], before[0]) and not equal(weights(learn)[1], before[1])


@pytest.mark.filterwarnings('ignore:load_learner')
@pytest.mark.parametrize('opt_func', [SGD, Adam])
def test_a_frozen_learner_is_saved_exported_and_loaded(opt_func):
    learn = frozen('lstm', opt_func=opt_func, lr=.01)
    quietly(learn, 'fit', 1)
    learn.save('frozen')
    other = learner('lstm', seed=1, opt_func=opt_func, lr=.01).load('frozen')
    assert equal(learn.model.parameters(), other.model.parameters())
    learn.export()
    again = load_learner('export.pkl')
    assert again.predict('a title')[0] in again.dls.vocab
    again.dls = learn.dls
    again.unfreeze()
    before = weights(again)
    quietly(again, 'fit', 1, .1)
    assert not equal(weights(again)[0], before[0])


# fastai's callbacks: each does its work, or is refused with a sentence


def fit(learn, cbs, n_epoch=3, lr=.1, **kwargs):
    quietly(learn, 'fit', n_epoch, lr, cbs=cbs, **kwargs)
    return learn


def early_stopping(learn):
    fit(learn, EarlyStoppingCallback(monitor='weighted_f1', min_delta=2), n_epoch=4)
    return len(learn.recorder.values) == 2


def reduce_lr(learn):
    fit(learn, ReduceLROnPlateau(min_delta=100), lr=slice(.01, 1.))
    return [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-4, .01])


class Spoil(Callback):
    "Make the last epoch the worst, and keep the weights of all"
    def before_fit(self): self.seen = []
    def after_train(self):
        if self.epoch == 2: self.learn.splitter(self.model)[1][1].data[0] = 50
        self.seen.append(weights(self.learn)[1])


def save_model(learn):
    spoil = Spoil()
    fit(learn, [SaveModelCallback(), spoil])
    best = np.argmin([values[1] for values in learn.recorder.values])
    learn.load('model', with_opt=False)
    return best < 2 and equal(weights(learn)[1], spoil.seen[best])


def csv_logger(learn):
    fit(learn, logger := CSVLogger())
    log = pd.read_csv(logger.fname)
    return len(log) == 3 and np.allclose(log.weighted_f1, [values[-1] for values in learn.recorder.values])


def show_graph(learn):
    drawn = []
    class Catch(Callback):
        order = 61  # behind the bar, before the graph
        def before_epoch(self): self.progress.mbar.update_graph = lambda graphs, *bounds: drawn.append(graphs)
    learn.fit(3, .1, cbs=[ShowGraphCallback(), Catch()])
    (_, losses), (_, valid) = drawn[-1]
    return len(drawn) == 3 and len(losses) == 30 and valid == [values[1] for values in learn.recorder.values]


class Norms(Callback):
    "The norm of all gradients before each step"
    order, run_valid = 100, False
    def before_fit(self): self.norms = []
    def before_step(self):
        grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in self.model.parameters()]
        self.norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))


def gradient_clip(learn):
    fit(learn, [GradientClip(1e-3), norms := Norms()], n_epoch=1)
    fit(learn, [unclipped := Norms()], n_epoch=1)
    return max(norms.norms) < 1.001e-3 < min(unclipped.norms)


def gradient_accumulation(learn):
    steps = []
    class Steps(Callback):
        def after_step(self): steps.append(self.train_iter)
    fit(learn, [GradientAccumulation(64), Steps()], n_epoch=1)
    return 4 <= len(steps) <= 5


@pytest.mark.filterwarnings('ignore')
def mixed_precision(learn):
    fit(learn, MixedPrecision(), n_epoch=1)
    plain = fit(learner(learn.kind), [], n_epoch=1)
    return equal(learn.model.parameters(), plain.model.parameters())  # on a CPU: in float32, with PyTorch's warning


def param_scheduler(learn):
    fit(learn, ParamScheduler(dict(lr=SchedLin(.1, .2))))
    return learn.recorder.hps['lr'] == pytest.approx([.1 + .1 * i / 30 for i in range(30)])


class Poison(Callback):
    def after_pred(self):
        if self.training and self.train_iter == 4: self.learn.pred = self.pred * torch.nan


def terminate_on_nan(learn):
    fit(learn, [TerminateOnNaNCallback(), Poison()])
    return learn.train_iter == 5 and not learn.decider.is_fitted


def tracker(learn):
    fit(learn, cb := TrackerCallback(monitor='valid_loss'))
    return cb.best == min(values[1] for values in learn.recorder.values)


def bn_freeze(learn):
    if learn.kind == 'bag': learn.model.drop = nn.Sequential(bn := nn.BatchNorm1d(8), nn.Dropout(.5))
    else:
        learn.model.head = PoolingLinearClassifier([learn.model.head.layers[-1].in_features, learn.dls.c], [.3], bn=True)
        bn = learn.model.head.layers[0]
    learn.train_bn = False
    for p in bn.parameters(): p.requires_grad_(False)
    fit(learn, BnFreeze(), n_epoch=1)
    frozen = bn.running_mean.abs().sum() == 0
    fit(learn, [], n_epoch=1)
    return frozen and bn.running_mean.abs().sum() > 0


def collect_data(learn):
    fit(learn, cb := CollectDataCallback(), n_epoch=1)
    n_train, n_valid = len(learn.dls.train_ds), len(learn.dls.valid_ds)
    return sum(len(y) for (_,), (y,), *_ in cb.data) == n_train + n_valid


def mc_dropout(learn):
    fit(learn, [], n_epoch=1)
    same = [quietly(learn, 'get_preds')[0] for _ in range(2)]
    other = [quietly(learn, 'get_preds', cbs=MCDropoutCallback())[0] for _ in range(2)]
    return equal(same[:1], same[1:]) and not equal(other[:1], other[1:])


def hook_callback(learn):
    fit(learn, cb := HookCallback(modules=list(learn.model.children())[-1:], hook=lambda module, i, o: type(o)), 1)
    return cb.hooks.stored == [torch.Tensor if learn.kind == 'bag' else tuple]


def activation_stats(learn):
    fit(learn, cb := ActivationStats(with_hist=True), n_epoch=1)
    mean, std, near_zero = cb.layer_stats(-1)  # of the linear layer
    return len(std) == len(learn.dls.train) and 0 < std[-1] < 10 and cb.hist(-1).shape == (40, len(std))


def short_epoch(learn):
    fit(learn, ShortEpochCallback(.5), n_epoch=2)
    return len(learn.recorder.losses) == 10 and len(learn.recorder.values) == 2


def fetch_preds(learn):
    fit(learn, cb := FetchPredsCallback(), n_epoch=1)
    return equal(cb.preds, quietly(learn, 'get_preds'))


def skip_to_epoch(learn):
    fit(learn, SkipToEpoch(1))
    return len(learn.recorder.losses) == 20


def recorder(learn):
    learn.recorder.train_metrics = True
    fit(learn, [])
    return learn.recorder.metric_names[1] == 'train_loss' and len(learn.final_record) == 10


def lr_finder(learn):
    before = weights(learn)
    fit(learn, LRFinder(start_lr=1e-3, num_it=12))
    return all(map(equal, weights(learn), before)) and len(learn.recorder.lrs) == 12 and not learn.decider.is_fitted


def before_batch(learn):
    seen = []
    fit(learn, before_batch_cb(lambda self, xb, yb: (seen.append(len(yb[0])), (xb, yb))[1]), n_epoch=1)
    return sum(seen) == 400


works = dict(
    EarlyStoppingCallback=early_stopping, ReduceLROnPlateau=reduce_lr, SaveModelCallback=save_model,
    CSVLogger=csv_logger, ShowGraphCallback=show_graph, GradientClip=gradient_clip,
    GradientAccumulation=gradient_accumulation, MixedPrecision=mixed_precision, ParamScheduler=param_scheduler,
    TerminateOnNaNCallback=terminate_on_nan, TrackerCallback=tracker, BnFreeze=bn_freeze,
    CollectDataCallback=collect_data, MCDropoutCallback=mc_dropout, HookCallback=hook_callback,
    ActivationStats=activation_stats, ShortEpochCallback=short_epoch, FetchPredsCallback=fetch_preds,
    SkipToEpoch=skip_to_epoch, Recorder=recorder, LRFinder=lr_finder, before_batch_cb=before_batch)

refused = dict(
    MixUp=(MixUp, 'drop_mult'), CutMix=(CutMix, 'LabelSmoothing'), ModelResetter=(ModelResetter, 'leave it out'),
    RNNCallback=(RNNCallback, 'logits alone'), RNNRegularizer=(RNNRegularizer, 'logits alone'),
    ModelToHalf=(ModelToHalf, 'to_fp16'), NonNativeMixedPrecision=(NonNativeMixedPrecision, 'to_bf16'),
    ChannelsLast=(ChannelsLast, 'to_fp16'))

# each learner or prediction has these; tests/test_distributed.py has those of `elsewhere`
always_there = {'Callback', 'TrainEvalCallback', 'CastToTensor', 'ProgressCallback', 'GatherPredsCallback', 'MixHandler'}
elsewhere = {'ParallelTrainer', 'DistributedTrainer'}
loggers_of_other_packages = {'azureml', 'captum', 'comet', 'neptune', 'tensorboard', 'wandb'}


def test_no_callback_of_fastai_is_left_out():
    names = [f'fastai.callback.{module.name}' for module in pkgutil.iter_modules(fastai.callback.__path__)]
    listed = {*works, *refused, *always_there, *elsewhere}
    for name in [*names, 'fastai.learner']:
        if name.split('.')[-1] in loggers_of_other_packages: continue
        for cls in vars(importlib.import_module(name)).values():
            if inspect.isclass(cls) and issubclass(cls, Callback) and cls.__module__.startswith('fastai'):
                assert cls.__name__ in listed, f'{name}.{cls.__name__}'


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('name', works)
def test_a_callback_does_its_work(name, kind):
    learn = learner(kind)
    learn.kind = kind
    assert works[name](learn)


@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('name', refused)
def test_a_callback_is_refused_with_a_sentence(name, kind):
    make, instead = refused[name]
    learn = learner(kind)
    cbs, opt = list(learn.cbs), learn.opt
    for add in (lambda: learn.add_cb(make()), lambda: learn.add_cbs([TrackerCallback(), make()]),
                lambda: learn.fit(1, cbs=make), lambda: learn.fit_one_cycle(1, cbs=[TrackerCallback(), make()])):
        with pytest.raises(ValueError, match=f'^{name}.*{instead}') as e: add()
        assert '\n' not in str(e.value)
    assert list(learn.cbs) == cbs
    quietly(learn, 'fit', 1, .1)  # still trains


def test_a_bag_is_clipped_to_the_same_steps_as_without_sparse_gradients():
    ends = []
    for cbs in ([], GradientClip(1e9)):
        learn = fit(learner('bag'), cbs, n_epoch=2, lr=1.)
        ends.append(learn.model.embedding.weight.detach())
        assert learn.model.embedding.sparse == (not cbs)
    assert torch.allclose(*ends, atol=1e-6)


# Methods of a `Learner` and of `DataLoaders`


@pytest.mark.parametrize('kind', kinds)
def test_predictions_in_all_ways(kind):
    learn = fit(learner(kind), [], n_epoch=1)
    titles, names = learn.dls.valid_ds.titles.decode(), [category for _, category in learn.dls.valid_ds]
    inputs, probs, targs, decoded, losses = quietly(learn, 'get_preds', with_input=True, with_decoded=True,
                                                    with_loss=True)
    assert [learn.dls.decode_batch((x[None],))[0][0] for x in inputs] == list(titles)
    assert list(learn.dls.vocab.decode(targs.numpy())) == names and torch.equal(decoded, probs.argmax(1))
    assert np.allclose(losses, -probs[range(len(targs)), targs].log(), atol=1e-4)
    logits = quietly(learn, 'get_preds', act=noop)[0]
    assert torch.allclose(logits.softmax(1), probs, atol=1e-6)
    with learn.quiet(), learn: inner = learn.get_preds(inner=True)[0]
    assert torch.equal(inner, probs)
    loss, accuracy, *_ = quietly(learn, 'validate')
    assert loss == pytest.approx(losses.mean().item(), rel=1e-4)
    assert accuracy == pytest.approx((decoded == targs).float().mean().item())
    labelled = learn.dls.test_dl(pd.DataFrame(dict(title=titles, category=names)), with_labels=True)
    assert list(quietly(learn, 'validate', dl=labelled)) == pytest.approx([loss, accuracy, *_])
    title, category, i, row = quietly(learn, 'predict', titles[3], with_input=True)
    assert title == titles[3] and category == learn.dls.vocab[int(i)] and torch.allclose(row, probs[3], atol=1e-6)


@pytest.mark.parametrize('kind', kinds)
def test_decisions_on_a_column_of_another_name(kind):
    learn = fit(learner(kind), [], n_epoch=1)
    new = df.head(30).rename(columns=dict(title='product'))
    decided = learn.decide(new, title_col='product')
    assert decided.equals(learn.decide(df.head(30))) and decided.index.equals(new.index)
    with pytest.raises(CatalogError, match="no column 'title'; it has 'product', 'category'. .*title_col="):
        learn.decide(new)


@pytest.mark.parametrize('kind', kinds)
def test_schedules_of_fastai(kind):
    learn = learner(kind)
    for method, args, n_epochs in [('fit_sgdr', (2, 1), 3), ('fit_flat_cos', (2,), 2), ('fit_one_cycle', (2,), 2)]:
        quietly(learn, method, *args, learn.lr / 4)
        rates = learn.recorder.hps['lr']
        assert len(rates) == 10 * n_epochs and max(rates) == pytest.approx(learn.lr / 4, rel=.05)
        assert rates[-1] < .1 * max(rates)
    ax = learn.recorder.plot_loss(skip_start=0, show_epochs=True)
    assert [len(line.get_xdata()) for line in ax.get_lines() if line.get_label() in ('train', 'valid')] == [20, 2]
    learn.recorder.plot_sched()
    plt.close('all')


@pytest.mark.parametrize('kind', kinds)
def test_suggestions_of_a_rate(kind):
    learn = learner(kind)
    before = weights(learn)
    suggested = quietly(learn, 'lr_find', num_it=60, suggest_funcs=(valley, slide, minimum, steep))
    assert suggested._fields == ('valley', 'slide', 'minimum', 'steep') and min(suggested) > 0
    assert all(map(equal, weights(learn), before))
    plt.close('all')


@pytest.mark.parametrize('kind', kinds)
def test_a_summary_counts_all_parameters(kind):
    learn = learner(kind)
    n = sum(p.numel() for p in learn.model.parameters())
    n_head = sum(p.numel() for p in learn.splitter(learn.model)[1])
    text = quietly(learn, 'summary')
    assert f'Total params: {n:,}\n' in text and f'Total trainable params: {n:,}\n' in text
    learn.freeze()
    text = quietly(learn, 'summary')
    assert f'Total params: {n:,}\n' in text and f'Total trainable params: {n_head:,}\n' in text
    assert f'Total non-trainable params: {n - n_head:,}\n' in text


def test_the_training_loop_is_shown(capsys):
    learner('lstm').show_training_loop()
    assert 'Start Fit' in capsys.readouterr().out


@pytest.mark.parametrize('kind', kinds)
def test_augmentation_at_test_time_is_refused(kind):
    with pytest.raises(NotImplementedError, match='use get_preds, or average'): learner(kind).tta()


@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('interpretation', [Interpretation, ClassificationInterpretation])
def test_interpretation_of_fastai(interpretation, kind):
    learn = fit(learner(kind), [], n_epoch=1)
    with learn.no_bar():
        interp = interpretation.from_learner(learn)
        losses = quietly(learn, 'get_preds', with_loss=True)[2]
        assert torch.allclose(interp.top_losses(3)[0], losses.topk(3)[0])
        for show in (lambda: interp.plot_top_losses(3), lambda: interp.show_results([0, 1]),
                     lambda: interp.top_losses(3, items=True)):
            with pytest.raises(AttributeError, match='TitleInterpretation.from_learner'): show()
        if interpretation is Interpretation: return
        assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)
        interp.plot_confusion_matrix()
        interp.print_classification_report()
        assert all(actual != predicted for actual, predicted, _ in interp.most_confused())
    plt.close('all')


def test_float16_on_a_cpu_warns_and_trains_in_float32():
    learn = learner('lstm')
    if learn.dls.device.type == 'cuda': pytest.skip('for machines without a GPU')
    with pytest.warns(UserWarning, match='needs a GPU.*to_bf16'): assert learn.to_fp16() is learn
    fit(learn, [], n_epoch=1)
    assert equal(learn.model.parameters(), fit(learner('lstm'), [], n_epoch=1).model.parameters())
    assert learn.to_fp32() is learn
    with pytest.raises(ValueError, match='to_fp16'): learn.to_non_native_fp16()
    with pytest.raises(ValueError, match='ChannelsLast'): learn.to_channelslast()


@pytest.mark.parametrize('loss_func', [FocalLossFlat, LabelSmoothingCrossEntropyFlat])
@pytest.mark.parametrize('kind', kinds)
def test_other_losses(kind, loss_func):
    learn = learner(kind)
    learn.loss_func = loss_func()
    fit(learn, [], n_epoch=2)
    assert learn.recorder.values[1][0] < learn.recorder.values[0][0]
    probs, _, losses = quietly(learn, 'get_preds', with_loss=True)
    assert torch.allclose(probs.sum(1), torch.ones(len(probs))) and len(losses) == len(probs)


def test_callbacks_are_added_and_removed():
    learn = learner('lstm')
    before = list(learn.cbs)
    assert learn.add_cbs([EarlyStoppingCallback(), CSVLogger]) is learn and hasattr(learn, 'csv_logger')
    assert list(learn.remove_cbs([EarlyStoppingCallback, CSVLogger]).cbs) == before
    with learn.removed_cbs(learn.f1_calibration): fit(learn, [], n_epoch=1)
    assert not learn.decider.is_fitted and learn.f1_calibration in learn.cbs


def test_loaders_as_fastai_has_them(capsys, tmp_path):
    learn = learner('lstm', path=tmp_path)
    dls = learn.dls
    assert learn.path == tmp_path and (len(dls), dls.n_inp, dls.c, dls.bs) == (2, 1, 4, 32)
    assert dls.cpu() is dls and dls.cuda() is dls and dls.train.one_batch()[0].device.type == dls.device.type
    dls.show_batch(max_n=3)
    assert len(capsys.readouterr().out.splitlines()) == 4
    other = dls.new(bs=8, shuffle=False)
    assert type(other) is type(dls.train) and len(other.one_batch()[0]) == 8 and other.dataset is dls.train_ds
    empty = dls.new_empty()
    assert len(empty.train_ds) == 0 and empty.vocab == dls.vocab
