"Fits that are killed or stopped by a person, and then resumed."
import contextlib
import copy
import io
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from fastai.callback.all import (ActivationStats, BnFreeze, CollectDataCallback, CSVLogger, EarlyStoppingCallback,
                                 GradientAccumulation, GradientClip, ReduceLROnPlateau, SaveModelCallback,
                                 ShortEpochCallback, ShowGraphCallback, TerminateOnNaNCallback)
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.optimizer import (SGD, Adam, Lamb, Larc, Lookahead, OptimWrapper, QHAdam, RAdam, RMSProp, ranger)
from fastai.torch_core import set_seed

from bpv_fastai.data.errors import FileError, ResumeError, TitleWarning, TrainingDiverged
from bpv_fastai.data.files import locked
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.optimizer import RowAdam
from bpv_fastai.train.resume import Checkpoints, FitState
from commands import call, script

here = Path(__file__).parent


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    "Number fits as a new process does"
    monkeypatch.setattr(Checkpoints, 'n_finished_fits', 0)


def test_disturbed_and_done_again():
    "Some of the script's cells; by itself it makes 228 runs"
    acts = ['--acts', 'one network,ensemble,label', '--events', 'SIGKILL,second process', '--late']
    command = [sys.executable, here/'kill_and_resume.py', '--runs', '6', *acts]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_interrupted_training_leaves_checkpoints_and_resumes(tmp_path):
    synthetic_catalog(3_000, 8).to_csv(tmp_path/'c.csv', index=False)
    options = '--nh 24 --bs 16 --nolinear --plain --threads 2 --checkpoint .01'.split()
    # a shell that starts tests in the background hands down that SIGINT is ignored
    def listen(): signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([script('bpv_train'), 'c.csv', '--epochs', '100', *options], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while 'training forward' not in process.stdout.readline(): assert process.poll() is None
    members = tmp_path/'model'/'models'/'ensemble'
    while len(list(members.glob('*.checkpoint'))) < 2:  # until both are at work
        time.sleep(.1)
        assert process.poll() is None
    sent = time.time()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in errors and 'stopped; the same training continues from model' in errors
    assert any(p.stat().st_mtime >= sent for p in members.glob('*.checkpoint'))
    assert not (tmp_path/'model'/'categorizer.json').exists()
    other = call('bpv_train', 'c.csv', '--epochs', 1, *options, cwd=tmp_path)
    assert other.returncode == 1 and 'holds members of another training' in other.stderr and '--fresh' in other.stderr
    fresh = call('bpv_train', 'c.csv', '--epochs', 1, *options, '--fresh', cwd=tmp_path)
    assert fresh.returncode == 0 and (tmp_path/'model'/'categorizer.json').exists()


def loaders(n=600): return TitleDataLoaders.from_df(synthetic_catalog(n, 5), bs=32, verbose=False)


def learner(tmp_path, seed=0, ngrams=False, **kwargs):
    set_seed(seed)
    if ngrams: return ngram_learner(loaders(), path=tmp_path)
    return bpv_learner(loaders(), nh=8, path=tmp_path, **kwargs)


def fit(learn, schedule, *cbs, **kwargs):
    with learn.quiet(): getattr(learn, schedule)(2, .5, cbs=list(cbs), **kwargs)
    return list(learn.model.state_dict().values())


def all_equal(some, others): return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def files(tmp_path): return sorted(p.name for p in (tmp_path/'models').iterdir())


class Killed(Exception): pass


class Kill(Callback):
    "Write a checkpoint after batch 19, and end the fit without notice"
    order = 200
    def after_batch(self):
        if self.train_iter == 19:
            self.learn.checkpoints.save()
            raise Killed('now')


@pytest.mark.parametrize('schedule', ['fit', 'fit_one_cycle', 'fit_flat_cos', 'fit_linear_cycle'])
@pytest.mark.parametrize('network', [dict(cell='lstm'), dict(cell='qrnn'), dict(ngrams=True)])
def test_every_fit_resumes(tmp_path, schedule, network):
    uninterrupted = fit(learner(tmp_path, **network), schedule)
    with pytest.raises(Killed): fit(learner(tmp_path, **network), schedule, Kill(), resume=True)
    assert files(tmp_path) == ['fit0.checkpoint']
    resumed = fit(learner(tmp_path, seed=7, **network), schedule, resume=True)
    assert all_equal(uninterrupted, resumed) and files(tmp_path) == []


def test_the_second_fit_has_its_own_checkpoint(tmp_path, monkeypatch):
    learn = learner(tmp_path)
    for _ in range(2): fit(learn, 'fit', Checkpoints(keep=True))
    assert files(tmp_path) == ['fit0.checkpoint', 'fit1.checkpoint']
    monkeypatch.setattr(Checkpoints, 'n_finished_fits', 0)
    again = learner(tmp_path, seed=3)
    for _ in range(2): fit(again, 'fit', Checkpoints(keep=True))
    assert all_equal(learn.model.parameters(), again.model.parameters())
    assert again.f1_calibration.table is not None


def test_a_checkpoint_of_another_fit_is_refused(tmp_path, monkeypatch):
    fit(learner(tmp_path), 'fit', Checkpoints(keep=True))
    monkeypatch.setattr(Checkpoints, 'n_finished_fits', 0)
    different = [dict(views=('last',) * 4), dict(drop_mult=.5), dict(wd=.1), dict(opt_func=Adam),
                 dict(loss_func=LabelSmoothingCrossEntropyFlat()), dict(backwards=True)]
    others = [learner(tmp_path, **kwargs) for kwargs in different]
    others.append(bpv_learner(loaders(601), nh=8, path=tmp_path))
    for other in others:
        with pytest.raises(ResumeError, match='belongs to another fit'): fit(other, 'fit', resume=True)
    with pytest.raises(ResumeError, match='schedule') as e: fit(learner(tmp_path), 'fit_one_cycle', resume=True)
    assert e.value.path == tmp_path/'models'/'fit0.checkpoint' and 'path=' in str(e.value)
    (tmp_path/'models'/'fit0.checkpoint').write_bytes(b'nothing')
    again = Checkpoints()
    with pytest.raises(ResumeError, match='damaged'): fit(learner(tmp_path), 'fit', again)
    (tmp_path/'models'/'fit0.checkpoint').unlink()
    fit(learner(tmp_path), 'fit', again)


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path):
    from safetensors.torch import save_file
    for tensors in (dict(weights=torch.ones(2)), dict(state=torch.ones(2)), dict(state=torch.zeros(9).byte())):
        save_file(tensors, tmp_path/'a')
        with pytest.raises(ResumeError, match='is no checkpoint') as e: FitState.read(tmp_path/'a')
        assert e.value.path == tmp_path/'a'


def test_checkpoints_need_a_learner_of_titles(tmp_path):
    learn = learner(tmp_path)
    plain = Learner(learn.dls, learn.model, cbs=Checkpoints(), path=tmp_path)
    with pytest.raises(ResumeError, match='need a TitleLearner'), plain.no_bar(), plain.no_logging(): plain.fit(1)


def test_a_loop_over_seeds_that_was_killed_resumes_each_network(tmp_path, monkeypatch):
    def loop(kill):
        monkeypatch.setattr(Checkpoints, 'n_finished_fits', 0)
        weights = []
        for seed in (1, 2):
            cbs = [Kill()] if kill and seed == 2 else []
            weights.append([p.clone() for p in fit(learner(tmp_path, seed=seed), 'fit', *cbs, resume=True)])
        return weights
    with pytest.raises(Killed): loop(True)
    assert files(tmp_path) == ['fit1.checkpoint']
    for seed, resumed in zip((1, 2), loop(False)):
        assert all_equal(resumed, fit(learner(tmp_path, seed=seed), 'fit'))


class SignalInBatch(Callback):
    "Send signals before a batch of training or of validation"
    def __init__(self, n, *numbers, training=True, pause=0.):
        self.n, self.numbers, self.in_training, self.pause = n, numbers, training, pause
    def before_batch(self):
        if self.training != self.in_training or self.train_iter != self.n: return
        for number in self.numbers:
            os.kill(os.getpid(), number)
            time.sleep(self.pause)


SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_stops_a_fit_after_its_batch(tmp_path, number):
    uninterrupted = fit(learner(tmp_path), 'fit')
    handlers = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 'fit', SignalInBatch(10, number), resume=True)
    assert FitState.read(tmp_path/'models'/'fit0.checkpoint').train_iter == 11
    assert [signal.getsignal(s) for s in SIGNALS] == handlers
    assert all_equal(uninterrupted, fit(learner(tmp_path, seed=7), 'fit', resume=True))


def test_a_second_ctrl_c_stops_a_fit_at_once(tmp_path):
    twice = SignalInBatch(10, signal.SIGINT, signal.SIGINT, pause=1.1)
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 'fit', twice, resume=True)
    assert files(tmp_path) == []


def test_the_signals_of_one_event_stop_a_fit_once(tmp_path):
    "A terminal that closes, or a program that hands a signal on, sends several"
    with pytest.raises(KeyboardInterrupt):
        fit(learner(tmp_path), 'fit', SignalInBatch(10, *SIGNALS, *SIGNALS), resume=True)
    assert FitState.read(tmp_path/'models'/'fit0.checkpoint').train_iter == 11


def test_an_ignored_signal_stays_ignored(tmp_path):
    "As under nohup"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try: fit(learner(tmp_path), 'fit', SignalInBatch(10, signal.SIGHUP), resume=True)
    finally: signal.signal(signal.SIGHUP, before)
    assert files(tmp_path) == []


def rows(learn): return [list(row) for row in learn.recorder.values]


@pytest.mark.parametrize('n', [15, 30])  # in the validation of the first and of the last epoch
@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_in_validation_leaves_the_checkpoint_of_the_training_before(tmp_path, n, number):
    alone = learner(tmp_path)
    weights = fit(alone, 'fit_one_cycle')
    with pytest.raises(KeyboardInterrupt, match='continues from'):
        fit(learner(tmp_path), 'fit_one_cycle', SignalInBatch(n, number, training=False), resume=True)
    assert FitState.read(tmp_path/'models'/'fit0.checkpoint').train_iter == n
    resumed = learner(tmp_path, seed=7)
    assert all_equal(weights, fit(resumed, 'fit_one_cycle', resume=True)) and rows(resumed) == rows(alone)


def test_a_signal_while_a_fit_is_calibrated_leaves_its_checkpoint(tmp_path):
    class SignalAfterFit(Callback):
        order = 70
        def after_fit(self):
            if self.learn.recorder.values: os.kill(os.getpid(), signal.SIGINT)
    alone = learner(tmp_path)
    weights = fit(alone, 'fit')
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 'fit', SignalAfterFit(), resume=True)
    resumed = learner(tmp_path, seed=7)
    assert all_equal(weights, fit(resumed, 'fit', resume=True)) and rows(resumed) == rows(alone)
    assert resumed.f1_calibration.table.equals(alone.f1_calibration.table)


def test_a_request_in_validation_stops_a_fit(tmp_path):
    "As members make it whose parent is gone"
    class Request(Callback):
        def before_batch(self):
            if not self.training: self.learn.checkpoints.request_stop()
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 'fit', Request(), resume=True)
    assert FitState.read(tmp_path/'models'/'fit0.checkpoint').train_iter == 15


def test_checkpoints_of_a_learner_act_in_fits_alone(tmp_path):
    alone = learner(tmp_path)
    weights = fit(alone, 'fit')
    with pytest.raises(Killed): fit(learner(tmp_path, cbs=Checkpoints()), 'fit', Kill())
    written = (tmp_path/'models'/'fit0.checkpoint').read_bytes()
    learn = learner(tmp_path, seed=7, cbs=Checkpoints())
    before = [p.clone() for p in learn.model.parameters()]
    handlers = [signal.getsignal(s) for s in SIGNALS]
    with learn.quiet():
        learn.validate()
        learn.get_preds()
        learn.predict('tea')
        learn.lr_find(show_plot=False)
        learn.lr_sweep(show_plot=False)
    assert all_equal(before, learn.model.parameters()) and [signal.getsignal(s) for s in SIGNALS] == handlers
    assert (tmp_path/'models'/'fit0.checkpoint').read_bytes() == written
    resumed = learner(tmp_path, seed=7, cbs=Checkpoints())
    assert all_equal(weights, fit(resumed, 'fit')) and rows(resumed) == rows(alone) and files(tmp_path) == []
    fit(resumed, 'fit', resume=True)  # the learner's own attend this fit, too
    assert resumed.checkpoints in resumed.cbs


def test_a_checkpoint_of_another_fit_does_not_stop_validation(tmp_path):
    with pytest.raises(Killed): fit(learner(tmp_path), 'fit', Kill(), resume=True)
    other = learner(tmp_path, cbs=Checkpoints(), drop_mult=.5)
    with other.quiet(): other.validate()
    with pytest.raises(ResumeError, match='another fit'): fit(other, 'fit')


def lookahead(params, lr, **kwargs): return Lookahead(SGD(params, lr=lr, mom=.9), k=4)


def adam_of_pytorch(params, lr, **kwargs): return OptimWrapper(params, torch.optim.AdamW, lr=lr)


OPTIMIZERS = dict(SGD=SGD, momentum=partial(SGD, mom=.9), RMSProp=partial(RMSProp, mom=.9), Adam=Adam, RAdam=RAdam,
                  QHAdam=QHAdam, Larc=Larc, Lamb=Lamb, ranger=ranger, lookahead=lookahead, pytorch=adam_of_pytorch,
                  RowAdam=RowAdam)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_resumes_exactly(tmp_path, name):
    def made(seed=0): return learner(tmp_path, seed, opt_func=OPTIMIZERS[name], lr=.01)
    alone = made()
    weights = fit(alone, 'fit_one_cycle')
    with pytest.raises(Killed): fit(made(), 'fit_one_cycle', Kill(), resume=True)
    resumed = made(7)
    assert all_equal(weights, fit(resumed, 'fit_one_cycle', resume=True)) and rows(resumed) == rows(alone)


class Average(Callback):
    "An average of the weights, which takes part in validation: what is validated is not what is trained"
    def before_fit(self): self.average, self.n_batches = copy.deepcopy(self.model), 0
    def after_step(self):
        self.n_batches += 1
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.model.parameters()): a.lerp_(p, .1)
    def before_validate(self):
        self.trained = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.average.state_dict())
    def after_validate(self): self.model.load_state_dict(self.trained)


class Surprise(Callback):
    "Collects losses, and trains at a rate that depends on them"
    order = 75
    def before_fit(self): self.seen, self.worst = {}, torch.zeros(1)
    def after_batch(self):
        if not self.training: return
        self.seen[str(self.train_iter)] = [self.loss.item()]
        self.worst = torch.maximum(self.worst, self.loss.detach()[None])
    def before_step(self):
        for group in self.opt.hypers: group['lr'] = .05 + .01 * len(self.seen) / (1 + self.worst.item())


CALLBACKS = dict(
    accumulate=lambda: GradientAccumulation(100), clip=lambda: GradientClip(.1), csv=CSVLogger,
    csv_append=lambda: CSVLogger(append=True), early=lambda: EarlyStoppingCallback(patience=2, min_delta=9.),
    save_best=lambda: SaveModelCallback(min_delta=9.), save_each=lambda: SaveModelCallback(every_epoch=True),
    plateau=lambda: ReduceLROnPlateau(min_delta=9.), short=lambda: ShortEpochCallback(.5), nan=TerminateOnNaNCallback,
    graph=ShowGraphCallback, bn_freeze=BnFreeze, statistics=lambda: ActivationStats(modules=None),
    collect=CollectDataCallback, average=Average, surprise=Surprise)


@pytest.mark.parametrize('name', CALLBACKS)
def test_every_callback_resumes_exactly(tmp_path, name):
    "Killed in the middle of an epoch's training, and stopped in validation"
    def run(folder, seed, *cbs, **kwargs):
        learn, cb = learner(folder, seed, lr=.1), CALLBACKS[name]()
        if not (folder/'history.csv').exists(): (folder/'history.csv').write_text('from another fit\n')
        with learn.no_logging(), contextlib.redirect_stdout(io.StringIO()): learn.fit(4, cbs=[cb, *cbs], **kwargs)
        texts = [line.rsplit(',', 1)[0] for line in (folder/'history.csv').read_text().splitlines()]
        saved = sorted(p.name for p in (folder/'models').glob('*.pth'))
        return list(learn.model.state_dict().values()), rows(learn), texts, saved, cb
    (tmp_path/'alone').mkdir()
    *alone, cb = run(tmp_path/'alone', 0)
    stops = Kill(), SignalInBatch(len(alone[1]) * 15 - 15, signal.SIGINT, training=False)
    if name == 'short': stops = Kill(), SignalInBatch(18, signal.SIGINT, training=False)
    for i, stop in enumerate(stops):
        folder = tmp_path/str(i)
        folder.mkdir()
        Checkpoints.n_finished_fits = 0
        with pytest.raises((Killed, KeyboardInterrupt)): run(folder, 0, stop, resume=True)
        Checkpoints.n_finished_fits = 0
        weights, *others, again = run(folder, 7, resume=True)
        assert all_equal(weights, alone[0]) and others == alone[1:] and not list(folder.glob('models/*.checkpoint'))
        if name == 'average': assert all_equal(again.average.parameters(), cb.average.parameters())
        if name == 'surprise': assert again.seen == cb.seen


def test_accumulated_gradients_of_a_table_resume_exactly(tmp_path):
    "They are sparse"
    alone = fit(learner(tmp_path, ngrams=True), 'fit', GradientAccumulation(100))
    with pytest.raises(Killed): fit(learner(tmp_path, ngrams=True), 'fit', GradientAccumulation(100), Kill(), resume=True)
    state = FitState.read(tmp_path/'models'/'fit0.checkpoint')
    assert state.grads
    assert all_equal(alone, fit(learner(tmp_path, 7, ngrams=True), 'fit', GradientAccumulation(100), resume=True))


def test_metrics_of_training_titles_resume_exactly(tmp_path):
    def made(seed):
        learn = learner(tmp_path, seed)
        learn.recorder.train_metrics = True
        return learn
    alone = made(0)
    fit(alone, 'fit')
    with pytest.raises(Killed): fit(made(0), 'fit', Kill(), resume=True)
    resumed = made(7)
    fit(resumed, 'fit', resume=True)
    assert rows(resumed) == rows(alone) and len(rows(alone)[0]) == 10


def test_a_refused_checkpoint_leaves_the_files_of_callbacks(tmp_path):
    with pytest.raises(Killed): fit(learner(tmp_path), 'fit', CSVLogger(), Kill(), resume=True)
    lines = (tmp_path/'history.csv').read_text()
    with pytest.raises(ResumeError): fit(learner(tmp_path, drop_mult=.5), 'fit', CSVLogger(), resume=True)
    assert (tmp_path/'history.csv').read_text() == lines and len(lines.splitlines()) == 2


def test_a_fit_goes_on_where_no_checkpoint_can_be_written(tmp_path, monkeypatch):
    def full(self, path): raise OSError(28, 'No space left on device')
    alone = fit(learner(tmp_path), 'fit')
    monkeypatch.setattr(FitState, 'write', full)
    with pytest.warns(TitleWarning, match='no checkpoint was written: .*No space left'):
        assert all_equal(alone, fit(learner(tmp_path), 'fit', resume=True))
    with pytest.warns(TitleWarning), pytest.raises(KeyboardInterrupt, match='stopped without a checkpoint'):
        fit(learner(tmp_path), 'fit', SignalInBatch(10, signal.SIGINT), Checkpoints())


def test_a_request_stops_a_fit_in_another_thread(tmp_path):
    uninterrupted = fit(learner(tmp_path), 'fit')
    checkpoints, caught = Checkpoints(), []
    class Request(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 10: checkpoints.request_stop()
    def work():
        try: fit(learner(tmp_path), 'fit', checkpoints, Request())
        except KeyboardInterrupt as e: caught.append(e)
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    assert 'continues from' in str(caught[0]) and not checkpoints.stop_requested
    assert FitState.read(tmp_path/'models'/'fit0.checkpoint').train_iter == 11
    assert all_equal(uninterrupted, fit(learner(tmp_path, seed=7), 'fit', checkpoints))


def test_a_diverged_fit_leaves_no_checkpoint(tmp_path):
    learn = learner(tmp_path)
    with pytest.raises(TrainingDiverged), learn.quiet(): learn.fit(2, 1e5, cbs=Checkpoints(minutes=0, keep=True))
    assert files(tmp_path) == []


def test_a_checkpoint_that_another_fit_writes_is_refused(tmp_path):
    with locked(tmp_path/'models'/'fit0.checkpoint'), pytest.raises(FileError, match='another fit writes'):
        fit(learner(tmp_path), 'fit', resume=True)
    fit(learner(tmp_path), 'fit', resume=True)
    assert files(tmp_path) == []


def test_an_interrupted_cell_is_run_again(tmp_path):
    "With the same learner, whose momentum is somewhere in its cycle"
    class Interrupt(Callback):
        def after_batch(self):
            if self.train_iter == 19: raise KeyboardInterrupt
    weights = fit(learner(tmp_path), 'fit_one_cycle')
    interrupted = learner(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        with interrupted.quiet(): interrupted.fit_one_cycle(2, .5, cbs=[Checkpoints(minutes=0), Interrupt()])
    assert files(tmp_path) == ['fit0.checkpoint'] and interrupted.opt.hypers[-1]['mom'] != interrupted.moms[0]
    assert all_equal(weights, fit(interrupted, 'fit_one_cycle', resume=True)) and files(tmp_path) == []


def test_a_checkpoint_of_another_number_is_named(tmp_path, monkeypatch, capsys):
    "A cell that is run alone in a new process finds no checkpoint of its number"
    monkeypatch.setattr(Checkpoints, 'n_finished_fits', 1)
    with pytest.raises(Killed): fit(learner(tmp_path), 'fit', Kill(), resume=True)
    monkeypatch.setattr(Checkpoints, 'n_finished_fits', 0)
    capsys.readouterr()
    for said in (1, 0):
        fit(learner(tmp_path), 'fit', resume=True)
        printed = capsys.readouterr().out
        assert ('fit1.checkpoint is not of this fit, number 0' in printed) == said and ('continuing' in printed) != said
    assert files(tmp_path) == []


@pytest.mark.parametrize('event', ['before_fit', 'before_train'])
def test_a_resumed_fit_that_ends_before_it_begins_leaves_no_trace(tmp_path, event):
    class Stop(Callback):
        order = Checkpoints.order + 1  # behind what it restores
        def __call__(self, name):
            if name == event: raise KeyboardInterrupt
    with pytest.raises(Killed): fit(learner(tmp_path), 'fit', Kill(), resume=True)
    learn, n_batches = learner(tmp_path), []
    with pytest.raises(KeyboardInterrupt): fit(learn, 'fit', Stop(), resume=True)
    class Count(Callback):
        def after_batch(self): n_batches.append(self.training)
    fit(learn, 'fit', Count())
    assert len(rows(learn)) == 2 and sum(n_batches) == 2 * len(learn.dls.train)
