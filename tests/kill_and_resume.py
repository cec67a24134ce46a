"""Kill with signal 9 at random moments, resume, and compare with an undisturbed run: training and labelling a file.

    python tests/kill_and_resume.py                       # 20 moments of training, 10 of labelling
    python tests/kill_and_resume.py --trainings 2 --labellings 2

What is killed is a fork of a process that has the libraries loaded and has done nothing with them. The undisturbed
training and the one that resumes are new interpreters, as for people: with another order of sets, for one thing."""
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

MODEL_FILES = ['categorizer.json', 'report.json', 'training.png', 'weights.safetensors']


def start(work) -> int:
    "Fork a child that does `work`, and return its process id"
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        work()
        code = 0
    except BaseException as e: print(repr(e), file=sys.stderr, flush=True)
    finally: os._exit(code)


def finish(work) -> float:
    "Let a child finish, and return its seconds"
    begin = time.perf_counter()
    _, status = os.waitpid(start(work), 0)
    if status: sys.exit('an undisturbed run failed')
    return time.perf_counter() - begin


def kill(work, after: float, or_when=lambda: False) -> bool:
    "Kill a child `after` so many seconds, or as soon as `or_when()`; return whether it was still at work"
    pid, end = start(work), time.perf_counter() + after
    while alive := os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.perf_counter() >= end or or_when():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(.001)
    return alive


def kill_up_to_twice(work, seconds: float, has_progress, rng: random.Random) -> tuple[int, int]:
    "Kill a run, and sometimes the run that resumes it; return how many kills there were, and how many left progress"
    # the first kill comes with the first progress, whatever the machine's speed; a second one at any moment
    n_killed = int(kill(work, 60, has_progress))
    n_progress = n_killed * has_progress()
    if n_killed and kill(work, rng.uniform(.3, 1.4) * seconds):
        n_killed += 1
        n_progress += has_progress()
    return n_killed, n_progress


def command(name: str, *args):
    "Run a command in a new interpreter"
    subprocess.run([Path(sys.executable).with_name(name), *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def kill_trainings(folder: Path, n: int, rng: random.Random) -> int:
    "Count how many of `n` killed trainings end with the weights of the undisturbed one"
    options = dict(epochs=2, cell='qrnn', nh=12, bs=32, checkpoint=.0005, threads=1)
    typed = [text for name, value in options.items() for text in (f'--{name}', value)]
    def run(out): return lambda: bpv_train('catalog.csv', str(folder/out), nolinear=True, plain=True, **options)
    def resume(out): command('bpv_train', 'catalog.csv', '--out', folder/out, '--nolinear', '--plain', *typed)
    seconds = finish(run('forked'))
    resume('alone')
    expected = (folder/'alone'/'weights.safetensors').read_bytes()
    n_same, n_checkpoints = 0, 0
    for i in range(n):
        out = folder/f'killed{i}'
        if i % 2: # at any moment, also before the first checkpoint
            n_killed, n_left = int(kill(run(out.name), rng.uniform(.02, .95) * seconds)), 0
        else:
            def has_checkpoint(): return any((out/'models'/'ensemble').glob('*.checkpoint'))
            n_killed, n_left = kill_up_to_twice(run(out.name), seconds, has_checkpoint, rng)
        n_checkpoints += n_left
        if n_killed: resume(out.name)
        is_same = (out/'weights.safetensors').read_bytes() == expected
        files = sorted(p.name for p in out.iterdir())
        n_same += is_same and files == MODEL_FILES
        weights = 'the same weights' if is_same else 'OTHER WEIGHTS'
        print(f'training {i}: killed {n_killed} times, {weights}, {files}', flush=True)
    print(f'{n_checkpoints} kills left a checkpoint to resume from')
    return n_same if n_checkpoints else 0


def kill_labellings(folder: Path, n: int, rng: random.Random) -> int:
    "Count how many of `n` killed labellings end with the file of the undisturbed one"
    n_same, n_parts = 0, 0
    for i in range(n):
        name = ('out.tsv', 'out.csv.gz', 'out.parquet')[i % 3]
        def run(place):
            def work():
                torch.set_num_threads(1)
                cat = Categorizer.load(folder/'alone')
                cat.chunk_size = 400
                cat.predict_file('titles.csv', folder/place/name, top_k=2, progress=False)
            return work
        seconds = finish(run('alone_labelled'))
        def has_parts(): return any((folder/'resumed').glob('.*.parts/[0-9]*'))
        n_killed, n_left = kill_up_to_twice(run('resumed'), seconds, has_parts, rng)
        n_parts += n_left
        if n_killed: finish(run('resumed'))
        is_same = (folder/'resumed'/name).read_bytes() == (folder/'alone_labelled'/name).read_bytes()
        files = [p.name for p in (folder/'resumed').iterdir()]
        n_same += is_same and files == [name]
        contents = 'the same bytes' if is_same else 'OTHER BYTES'
        print(f'file {i}: {name} killed {n_killed} times, {contents}, {files}', flush=True)
        shutil.rmtree(folder/'resumed')
    print(f'{n_parts} kills left parts to resume from')
    return n_same if n_parts else 0


@call_parse
def main(
    trainings: int = 20, # trainings to kill
    labellings: int = 10, # labellings to kill
    seed: int = 0, # of the moments
):
    "Kill, resume, compare"
    folder, rng = Path(tempfile.mkdtemp()), random.Random(seed)
    os.chdir(folder)
    df = synthetic_catalog(2_400, 8)
    df.to_csv('catalog.csv', index=False)
    df[['title']].sample(8_000, replace=True, random_state=0).to_csv('titles.csv', index=False)
    n_trained = kill_trainings(folder, trainings, rng)
    n_labelled = kill_labellings(folder, labellings, rng)
    print(f'{n_trained} of {trainings} trainings, {n_labelled} of {labellings} files as if undisturbed')
    shutil.rmtree(folder)
    if n_trained < trainings or n_labelled < labellings: sys.exit(1)
