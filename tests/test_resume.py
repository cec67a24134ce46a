"Fits that are killed or stopped by a person, and then resumed."
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.optimizer import Adam, OptimWrapper
from fastai.torch_core import set_seed

from bpv_fastai.data.errors import ResumeError, TrainingDiverged
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.resume import Checkpoints, FitState

here = Path(__file__).parent


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    "Number fits as a new process does"
    monkeypatch.setattr(Checkpoints, 'n_finished_fits', 0)


def test_killed_and_resumed():
    "A short run of the script; by itself it kills 20 trainings and 10 labellings"
    command = [sys.executable, here/'kill_and_resume.py', '--trainings', '2', '--labellings', '2']
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_interrupted_training_leaves_checkpoints_and_resumes(tmp_path):
    synthetic_catalog(3_000, 8).to_csv(tmp_path/'c.csv', index=False)
    options = '--nh 24 --bs 16 --nolinear --plain --threads 2 --checkpoint .01'.split()
    def bpv_train(epochs): return [Path(sys.executable).with_name('bpv_train'), 'c.csv', '--epochs', epochs, *options]
    # a shell that starts tests in the background hands down that SIGINT is ignored
    def listen(): signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(bpv_train('100'), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, preexec_fn=listen)
    while 'training forward' not in process.stdout.readline(): assert process.poll() is None
    members = tmp_path/'model'/'models'/'ensemble'
    while len(list(members.glob('*.checkpoint'))) < 2:  # until both are at work
        time.sleep(.1)
        assert process.poll() is None
    sent = time.time()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in errors and 'the same command resumes' in errors
    assert any(p.stat().st_mtime >= sent for p in members.glob('*.checkpoint'))
    assert not (tmp_path/'model'/'categorizer.json').exists()
    other = subprocess.run(bpv_train('1'), cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 1 and 'holds members of another training' in other.stderr and '--fresh' in other.stderr
    fresh = subprocess.run([*bpv_train('1'), '--fresh'], cwd=tmp_path, capture_output=True, text=True)
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


def test_an_optimizer_of_pytorch_resumes(tmp_path):
    def opt_func(params, lr, **kwargs): return OptimWrapper(params, torch.optim.Adam, lr=lr)
    uninterrupted = fit(learner(tmp_path, opt_func=opt_func), 'fit')
    with pytest.raises(Killed): fit(learner(tmp_path, opt_func=opt_func), 'fit', Kill(), resume=True)
    assert all_equal(uninterrupted, fit(learner(tmp_path, seed=7, opt_func=opt_func), 'fit', resume=True))


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
    def __init__(self, n, number): self.n, self.number = n, number
    def before_batch(self):
        if self.training and self.train_iter == self.n: os.kill(os.getpid(), self.number)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_fit_after_its_batch(tmp_path, number):
    uninterrupted = fit(learner(tmp_path), 'fit')
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 'fit', SignalInBatch(10, number), resume=True)
    assert FitState.read(tmp_path/'models'/'fit0.checkpoint').train_iter == 11
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert all_equal(uninterrupted, fit(learner(tmp_path, seed=7), 'fit', resume=True))


def test_a_second_signal_stops_a_fit_at_once(tmp_path):
    twice = [SignalInBatch(10, signal.SIGINT), SignalInBatch(10, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), 'fit', *twice, resume=True)
    assert not (tmp_path/'models').exists()


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
