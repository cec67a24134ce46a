"Threads of several processes on the same cores, and of several callers in one process."
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from bpv_fastai.data.errors import TitleWarning
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner
from bpv_fastai.models.inference import map_outputs
from bpv_fastai.train.loaders import TitleDataLoaders


@pytest.mark.parametrize('first, policy, then', [
    ('os', None, 'PASSIVE 2000'), ('torch', None, 'None None'), ('os', 'active', 'active None')])
def test_threads_sleep_while_they_wait(first, policy, then):
    "Where OpenMP can still be told so, and nobody has said otherwise"
    code = f'import os, {first}, bpv_fastai; print(*map(os.environ.get, ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))'
    env = dict(OMP_WAIT_POLICY=policy) if policy else {}
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env)
    assert ran.stdout.strip() == then


@pytest.mark.parametrize('share_of_time, warned', [(.5, True), (1.9, False)])
def test_a_fit_on_busy_cores_warns_once(tmp_path, monkeypatch, two_threads, share_of_time, warned):
    dls = TitleDataLoaders.from_df(synthetic_catalog(300, 3), bs=16, path=tmp_path, verbose=False)
    learn = bpv_learner(dls, nh=4, n_layers=1)
    learn.busy_cores.seconds = 0
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
    monkeypatch.setattr(time, 'process_time', lambda: share_of_time * time.monotonic())
    with warnings.catch_warnings(record=True) as caught, learn.quiet():
        warnings.simplefilter('always')
        learn.fit(2)
    messages = [str(w.message) for w in caught if isinstance(w.message, TitleWarning)]
    assert len(messages) == warned and all('set_num_threads(1)' in m for m in messages)
    monkeypatch.setenv('OMP_WAIT_POLICY', 'PASSIVE')
    with warnings.catch_warnings(), learn.quiet():
        warnings.simplefilter('error', TitleWarning)
        learn.fit(1)


def test_callers_that_overlap_get_their_threads_back(two_threads):
    "Whoever leaves first must not give threads to the workers of the others, nor leave a caller with one"
    seen, after, rng = set(), [], np.random.default_rng(0)
    def net(x):
        seen.add(torch.get_num_threads())
        time.sleep(.002)
        return x.float()
    def call(n_batches, delay):
        time.sleep(delay)
        batches = ((torch.zeros(1, 2, dtype=torch.long),) for _ in range(n_batches))
        list(map_outputs(net, batches, lambda output: output, n_threads=2))
        after.append(torch.get_num_threads())
    callers = [threading.Thread(target=call, args=(int(rng.integers(1, 60)), rng.uniform(0, .1))) for _ in range(12)]
    for caller in callers: caller.start()
    for caller in callers: caller.join()
    assert seen == {1} and after == [2] * 12 and torch.get_num_threads() == 2
    new = threading.Thread(target=lambda: after.append(torch.get_num_threads()))
    new.start(); new.join()
    assert after[-1] == 2
