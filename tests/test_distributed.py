"One network trained in several processes, which talk by gloo on the CPU."
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('accelerate', reason='several processes train by accelerate')
from fastai.basics import set_seed
from fastai.distributed import ParallelTrainer

from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders

worker = Path(__file__).parent/'distributed_worker.py'


def start(folder, bs, **env):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, worker, str(bs)], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | dict(OMP_NUM_THREADS='1') | env)


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    "What two processes print, and what one prints that has batches of twice the size"
    folder = tmp_path_factory.mktemp('distributed')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    group = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    running = [start(folder/'several', 32, **group, RANK=rank, LOCAL_RANK=rank) for rank in '01']
    running.append(start(folder/'alone', 64))
    try:
        printed = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running: process.kill()
    for process, (_, errors) in zip(running, printed): assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in printed]


@pytest.mark.parametrize('kind', ['lstm', 'qrnn', 'bag'])
def test_several_processes_train_as_one_does(outcomes, kind):
    first, second, alone = (outcome[kind] for outcome in outcomes)
    assert first == second
    for name, values in alone.items(): assert first[name] == pytest.approx(values, abs=2e-4), name
    assert first['probs'] == pytest.approx(first['inside'], abs=1e-6)


def test_all_processes_stop_where_one_diverges(outcomes):
    first, second, _ = (outcome.get('diverged') for outcome in outcomes)
    assert first == second and first['message'].startswith('TrainingDiverged') and 'nan' in first['message']
    assert first['stopped'] == 8 and first['whole'] == 16 and first['model'] == 'TitleClassifier'  # restored


def test_the_best_epoch_is_restored_in_all_processes(outcomes):
    assert [outcome['saved'] for outcome in outcomes[:2]] == [True, True]


@pytest.mark.parametrize('name,message', [
    ('resumed', 'ResumeError: .*several train this network: fit it without resume=True'),
    ('found', 'find the rate in one process'), ('nan', 'leave it out'), ('seeds', 'different titles.*seed'),
    ('plain', 'distrib_ctx')])
def test_what_several_processes_cannot_do_is_one_sentence(outcomes, name, message):
    for outcome in outcomes[:2]: assert re.search(message, outcome[name]), outcome[name]


@pytest.mark.parametrize('kind', ['lstm', 'bag'])
def test_parallel_trainer_on_a_cpu(kind, tmp_path):
    weights = []
    for cbs in ([], ParallelTrainer(None)):
        set_seed(0)
        dls = TitleDataLoaders.from_df(synthetic_catalog(400, 4), bs=32, verbose=False, device='cpu')
        learn = ngram_learner(dls, n_rows=2**12, dim=8) if kind == 'bag' else bpv_learner(dls, nh=8)
        with learn.quiet(): learn.fit(1, .1, cbs=cbs)
        weights.append([p.detach() for p in learn.model.parameters()])
    for a, b in zip(*weights, strict=True): assert a.numpy() == pytest.approx(b.numpy(), abs=1e-6)
