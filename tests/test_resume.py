"Interrupted work: killed, stopped by a person, and gone on with."
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.optimizer import Adam

from bpv_fastai import resume
from bpv_fastai.all import *

here = Path(__file__).parent


def test_killed_and_gone_on_with():
    "A short run of the script; by itself it kills 20 trainings and 10 labellings"
    ran = subprocess.run([sys.executable, here/'kill_and_resume.py', '--trainings', '2', '--labellings', '2'], capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_interrupted_training_leaves_a_checkpoint_and_goes_on(tmp_path):
    synthetic_catalog(3_000, 8).to_csv(tmp_path/'c.csv', index=False)
    command = [Path(sys.executable).with_name('bpv_train'), 'c.csv', '--epochs', '100', '--nh', '24', '--bs', '16', '--nolinear', '--plain', '--threads', '2']
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that a shell started in the background would hand down deafness
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while 'training forward' not in process.stdout.readline(): assert process.poll() is None
    members = tmp_path/'model'/'models'/'ensemble'
    while len(list(members.glob('*.batches'))) < 2: time.sleep(.1); assert process.poll() is None  # until both are at work
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in said and 'the same command goes on' in said
    assert list(members.glob('*.checkpoint')) and not (tmp_path/'model'/'categorizer.json').exists()
    other = subprocess.run([*command[:3], '1', *command[4:]], cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 1 and 'holds members of another training' in other.stderr and '--fresh' in other.stderr
    fresh = subprocess.run([*command[:3], '1', *command[4:], '--fresh'], cwd=tmp_path, capture_output=True, text=True)
    assert fresh.returncode == 0 and (tmp_path/'model'/'categorizer.json').exists()


def learner(tmp_path, seed=0, ngrams=False, **kwargs):
    set_seed(seed)
    dls = TitleDataLoaders.from_df(synthetic_catalog(600, 5), bs=32, verbose=False)
    return ngram_learner(dls, path=tmp_path) if ngrams else bpv_learner(dls, nh=8, path=tmp_path, **kwargs)


class Killed(Exception): pass


def fit(learn, how, *cbs, **kwargs):
    with learn.no_bar(), learn.no_logging(): getattr(learn, how)(2, .5, cbs=list(cbs), **kwargs)
    return list(learn.model.state_dict().values())


@pytest.mark.parametrize('how', ['fit', 'fit_one_cycle', 'fit_flat_cos', 'fit_linear_cycle'])
@pytest.mark.parametrize('net', [dict(cell='lstm'), dict(cell='qrnn'), dict(ngrams=True)])
def test_every_fit_resumes(tmp_path, how, net, monkeypatch):
    monkeypatch.setattr(resume, '_finished_fits', 0)
    from fastai.callback.core import Callback
    class Kill(Callback):
        order = 200
        def after_batch(self):
            if self.train_iter == 19: self.learn.checkpoints.save(); raise Killed('now')
    alone = fit(learner(tmp_path, **net), how)
    with pytest.raises(Killed): fit(learner(tmp_path, **net), how, Kill(), resume=True)
    assert [p.name for p in (tmp_path/'models').iterdir()] == ['fit0.checkpoint']
    again = fit(learner(tmp_path, seed=7, **net), how, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(alone, again)) and not list((tmp_path/'models').iterdir())


def test_the_second_fit_has_its_own_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, '_finished_fits', 0)
    learn = learner(tmp_path)
    fit(learn, 'fit', Checkpoints(keep=True)); fit(learn, 'fit', Checkpoints(keep=True))
    assert sorted(p.name for p in (tmp_path/'models').iterdir()) == ['fit0.checkpoint', 'fit1.checkpoint']
    monkeypatch.setattr(resume, '_finished_fits', 0)  # as in a new process
    again = learner(tmp_path, seed=3)
    fit(again, 'fit', Checkpoints(keep=True)); fit(again, 'fit', Checkpoints(keep=True))
    assert all(torch.equal(a, b) for a, b in zip(learn.model.parameters(), again.model.parameters()))
    assert again.f1_calibration.table is not None


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, '_finished_fits', 0)
    fit(learner(tmp_path), 'fit', Checkpoints(keep=True))
    monkeypatch.setattr(resume, '_finished_fits', 0)
    for other in (learner(tmp_path, views=('last',) * 4), learner(tmp_path, drop_mult=.5), learner(tmp_path, wd=.1), learner(tmp_path, opt_func=Adam), learner(tmp_path, loss_func=LabelSmoothingCrossEntropyFlat()), learner(tmp_path, backwards=True), bpv_learner(TitleDataLoaders.from_df(synthetic_catalog(601, 5), bs=32, verbose=False), nh=8, path=tmp_path)):
        with pytest.raises(ResumeError, match='is of another fit'): fit(other, 'fit', resume=True)
    with pytest.raises(ResumeError, match='schedule'): fit(learner(tmp_path), 'fit_one_cycle', resume=True)
    (tmp_path/'models'/'fit0.checkpoint').write_bytes(b'nothing')
    again = Checkpoints()
    with pytest.raises(ResumeError, match='damaged'): fit(learner(tmp_path), 'fit', again)
    (tmp_path/'models'/'fit0.checkpoint').unlink()
    fit(learner(tmp_path), 'fit', again)


def test_a_loop_over_seeds_that_was_killed_finds_each_network_again(tmp_path, monkeypatch):
    from fastai.callback.core import Callback
    class Kill(Callback):
        order = 200
        def after_batch(self):
            if self.train_iter == 19: self.learn.checkpoints.save(); raise Killed('now')
    def loop(kill):
        monkeypatch.setattr(resume, '_finished_fits', 0)
        return [[p.clone() for p in fit(learner(tmp_path, seed=s), 'fit', *([Kill()] if kill and s == 2 else []), resume=True)] for s in (1, 2)]
    with pytest.raises(Killed): loop(True)
    assert [p.name for p in (tmp_path/'models').iterdir()] == ['fit1.checkpoint']
    for s, found in zip((1, 2), loop(False)):
        assert all(torch.equal(a, b) for a, b in zip(found, fit(learner(tmp_path, seed=s), 'fit')))
