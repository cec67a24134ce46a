"""The paper's claims on USDA titles (each title once, split with seed 42): tables 1 to 4 and figures 4 and 5.

    python benchmarks/paper.py --scale small                     # a CPU: 128 wide, a sample of titles; 50 networks, about an hour on two cores
    python benchmarks/paper.py --scale full --device cuda        # 2x512, all 264,343 titles, 20 and 40 epochs
    python benchmarks/paper.py --scale small --tables            # only the tables, from networks trained before

Each network leaves its validation probabilities in benchmarks/runs/; a run that is stopped goes on with those that are missing.
The result is benchmarks/results/paper_SCALE.json; nbs/91_paper.ipynb draws it."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import machine
from fastai.callback.core import Callback, CancelValidException
from fastai.torch_core import set_seed
from fastcore.script import call_parse

from bpv_fastai.all import *
from bpv_fastai.callbacks import F1Calibration

views = dict(last=('last',), copies=('last',) * 4, concat=('last', 'avg', 'max'), bpv=('last', 'avg', 'max', 'min'))
scales = dict(small=dict(rows=32_000, nh=128, bs=128, short=(8, 1.), long=(16, .8), seeds=5),
              full=dict(rows=0, nh=512, bs=256, short=(20, 1.), long=(40, .8), seeds=5))


def jobs(scale: dict) -> list:
    "What is to be trained, most telling first: name, views, direction, schedule, seed"
    def all_seeds(view, way, length): return [(f'{view}-{way}-{length}-{s}', view, way, length, s) for s in range(scale['seeds'])]
    rounds = [[all_seeds(v, w, 'short')[s] for v, w in (('bpv', 'forward'), ('last', 'forward'), ('concat', 'forward'), ('copies', 'forward'), ('bpv', 'backward'), ('concat', 'backward'))]
              for s in range(scale['seeds'])]
    longer = [[all_seeds(v, w, 'long')[s] for v, w in (('bpv', 'forward'), ('bpv', 'backward'), ('concat', 'forward'), ('concat', 'backward'))] for s in range(scale['seeds'])]
    return [('sweep', 'bpv', 'forward', 'sweep', 0)] + [j for r in rounds + longer for j in r]


def catalog(scale: dict):
    "The titles of a scale, split once for all networks"
    df = usda_foods()
    if scale['rows']: df = df.sample(scale['rows'], random_state=42)
    return read_catalog(df.reset_index(drop=True), verbose=False)


class _ValidateAtTheEnd(Callback):
    "Only the last epoch is validated"
    def before_validate(self):
        if self.epoch < self.n_epoch - 1 and not self.learn.loss is None: raise CancelValidException()


def learner(df, scale: dict, job: tuple, device: str):
    "A new network for a job, with its own seed for weights, dropout and the order of batches"
    name, view, way, length, seed = job
    set_seed(seed, reproducible=device == 'cpu')
    dls = TitleDataLoaders.from_df(df, valid_pct=.25, bs=scale['bs'], val_bs=256, seed=42, device=device, verbose=False)
    dls = type(dls)(dls.train.new(seed=1000 + seed), dls.valid, path=dls.path, device=dls.device)
    return bpv_learner(dls, nh=scale['nh'], views=views[view], backwards=way == 'backward').remove_cb(F1Calibration)


def train(df, scale: dict, job: tuple, device: str, path: Path):
    "Train one network and leave its validation probabilities"
    learn, start = learner(df, scale, job, device), time.perf_counter()
    with learn.no_bar(), learn.no_logging():
        if job[3] == 'sweep':
            sweep = learn.momentum_sweep(show_plot=False)
            found = dict(mom=sweep['mom'].to_numpy(), lr=sweep['lr'].to_numpy(), loss=sweep['loss'].to_numpy())
        else:
            epochs, lr = scale[job[3]]
            try:
                learn.fit_linear_cycle(epochs, lr, cbs=_ValidateAtTheEnd())
                seconds = time.perf_counter() - start
                found = dict(probs=learn.get_preds()[0].numpy().astype(np.float16), seconds=seconds)
            except TrainingDiverged as e: found = dict(diverged=str(e), seconds=time.perf_counter() - start)
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    with open(beside, 'wb') as f: np.savez(f, **found)
    beside.replace(path)


def claim(path: Path) -> bool:
    "Take a job unless a living process has it"
    lock = path.with_suffix('.lock')
    try:
        if lock.exists() and not os.path.exists(f'/proc/{lock.read_text() or 0}'): lock.unlink()
        with open(lock, 'x') as f: f.write(str(os.getpid()))
        return True
    except (FileExistsError, FileNotFoundError): return False


def work(scale: dict, device: str, runs: Path):
    "Train whatever is missing"
    df = catalog(scale)
    for i, job in enumerate(todo := jobs(scale)):
        path = runs/f'{job[0]}.npz'
        if path.exists() or not claim(path): continue
        start = time.perf_counter()
        train(df, scale, job, device, path)
        path.with_suffix('.lock').unlink()
        print(f'{i + 1} of {len(todo)}: {job[0]}, {time.perf_counter() - start:.0f} s', flush=True)


@call_parse
def main(
    scale: str = 'small', # small or full
    workers: int = 0, # processes that train side by side; one a core on a CPU, one on a GPU if 0
    device: str = 'cpu', # cpu or cuda
    worker: bool = False, # be one of them
    tables: bool = False, # train nothing
):
    "Train the networks that are missing, then write the tables"
    runs = Path(__file__).parent/'runs'/f'paper_{scale}'
    runs.mkdir(parents=True, exist_ok=True)
    if worker: return work(scales[scale], device, runs)
    if not tables:
        workers = workers or (os.cpu_count() if device == 'cpu' else 1)
        threads = max(1, os.cpu_count() // workers)
        started = [subprocess.Popen([sys.executable, __file__, '--scale', scale, '--device', device, '--worker'], env=os.environ | dict(OMP_NUM_THREADS=str(threads)))
                   for _ in range(workers)]
        if any([p.wait() for p in started]): sys.exit('a worker failed: see above')
