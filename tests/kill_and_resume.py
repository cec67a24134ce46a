"""Kill with signal 9 at random moments, go on, and compare with what was left alone: training and labelling a file.

    python tests/kill_and_resume.py                       # 20 moments of training, 10 of labelling
    python tests/kill_and_resume.py --trainings 2 --labellings 2

What is killed is a fork of a process that has the libraries loaded and has done nothing with them; what is left alone, and what goes on,
is a new interpreter each time, as it is for people: with another order of sets, for one thing."""
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # the parent never computes, and a child with one thread starts none

import torch
from fastcore.script import call_parse

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.cli.train import bpv_train
from bpv_fastai.data.samples import synthetic_catalog


def start(work) -> int:
    "A child that does `work`; its process id"
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        work()
        code = 0
    except BaseException as e: print(repr(e), file=sys.stderr, flush=True)
    finally: os._exit(code)


def finish(work) -> float:
    "A child that is left alone; its seconds"
    begun = time.perf_counter()
    _, status = os.waitpid(start(work), 0)
    if status: sys.exit('a run that was left alone failed')
    return time.perf_counter() - begun


def kill(work, after: float, sooner=lambda: False) -> bool:
    "A child that is killed `after` so many seconds, or as soon as `sooner` says; whether it was still at work"
    pid, end = start(work), time.perf_counter() + after
    while alive := os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.perf_counter() >= end or sooner(): os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); break
        time.sleep(.001)
    return alive


def command(name: str, *args):
    "A command in a new interpreter"
    subprocess.run([Path(sys.executable).with_name(name), *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def training(folder: Path, n: int, rng: random.Random) -> int:
    "How many of `n` killed trainings end with the weights of the one that was left alone"
    options = dict(epochs=2, cell='qrnn', nh=12, bs=32, checkpoint=.0005, threads=1)
    def run(out): return lambda: bpv_train('catalog.csv', str(folder/out), nolinear=True, plain=True, **options)
    def go_on(out): command('bpv_train', 'catalog.csv', '--out', folder/out, '--nolinear', '--plain', *(a for k, v in options.items() for a in (f'--{k}', v)))
    seconds, same, begun = finish(run('forked')), 0, 0
    go_on('alone')
    wanted = (folder/'alone'/'weights.safetensors').read_bytes()
    for i in range(n):
        checkpoints = (folder/f'killed{i}'/'models'/'ensemble').glob
        after, killed = rng.uniform(.02, .95) * seconds, 0
        # the first at its first checkpoint, whatever the machine's speed; the others at any moment
        while kill(run(f'killed{i}'), *((60, lambda: any(checkpoints('*.checkpoint'))) if i == killed == 0 else (after,))):
            killed += 1; after = rng.uniform(.3, 1.2) * seconds  # some are killed again while they go on
            begun += any(checkpoints('*.checkpoint'))
            if killed == 2: break
        if killed: go_on(f'killed{i}')
        equal = (folder/f'killed{i}'/'weights.safetensors').read_bytes() == wanted
        left = sorted(p.name for p in (folder/f'killed{i}').iterdir())
        same += equal and left == ['categorizer.json', 'report.json', 'training.png', 'weights.safetensors']
        print(f'training {i}: killed {killed} times, {"the same weights" if equal else "OTHER WEIGHTS"}, {left}', flush=True)
    print(f'{begun} kills left a checkpoint to go on from')
    return same if begun else 0


def files(folder: Path, n: int, rng: random.Random) -> int:
    "How many of `n` killed labellings end with the file of the one that was left alone"
    same, begun = 0, 0
    for i in range(n):
        name = ('out.tsv', 'out.csv.gz', 'out.parquet')[i % 3]
        def run(place):
            def work():
                torch.set_num_threads(1)
                cat = Categorizer.load(folder/'alone')
                cat.chunk_size = 400
                cat.predict_file('titles.csv', folder/place/name, top_k=2, progress=False)
            return work
        seconds = finish(run('left'))
        after, killed = rng.uniform(.05, .95) * seconds, 0
        def parts(): return any((folder/'gone_on').glob('.*.parts/[0-9]*'))
        # the first at its first part, whatever the machine's speed; the others at any moment
        while kill(run('gone_on'), *((60, parts) if i == killed == 0 else (after,))):
            killed += 1; after = rng.uniform(.3, 1.5) * seconds  # some are killed again while they go on
            begun += parts()
        equal = (folder/'gone_on'/name).read_bytes() == (folder/'left'/name).read_bytes()
        left = [p.name for p in (folder/'gone_on').iterdir()]
        same += equal and left == [name]
        print(f'file {i}: {name} killed {killed} times, {"the same bytes" if equal else "OTHER BYTES"}, {left}', flush=True)
        shutil.rmtree(folder/'gone_on')
    print(f'{begun} kills left parts to go on from')
    return same if begun else 0


@call_parse
def main(
    trainings: int = 20, # trainings to kill
    labellings: int = 10, # labellings to kill
    seed: int = 0, # of the moments
):
    "Kill, go on, compare"
    folder, rng = Path(tempfile.mkdtemp()), random.Random(seed)
    os.chdir(folder)
    df = synthetic_catalog(2_400, 8)
    df.to_csv('catalog.csv', index=False); df[['title']].sample(8_000, replace=True, random_state=0).to_csv('titles.csv', index=False)
    trained = training(folder, trainings, rng)
    labelled = files(folder, labellings, rng)
    print(f'{trained} of {trainings} trainings, {labelled} of {labellings} files as if left alone')
    shutil.rmtree(folder)
    if trained < trainings or labelled < labellings: sys.exit(1)
