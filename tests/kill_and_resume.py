"""Disturb whatever writes files at random moments, do it again, and compare with an undisturbed run.

    python tests/kill_and_resume.py                       # 228 runs, some 15 minutes
    python tests/kill_and_resume.py --runs 12 --seed 3    # some of them

A run is a fork of a process that has the libraries loaded and has computed nothing, in a session of its own. It is
disturbed at a random moment of its work: a signal to the whole group, as a terminal sends it; a kill of the process
alone; a limit on the size of files, which is what a full disk looks like; or a second process that does the same in the
same folder. Then the same work is done once more, undisturbed. After the disturbance no file may be half, no process
may be left and each message must be true; after the second time the results must be those of an undisturbed run, to
the last bit, and nothing else may lie in the folder. The tables also count the runs that were disturbed before they
were done, and those that had left something to continue from."""
import contextlib
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # the parent never computes, and a child with one thread starts none
os.environ['MPLBACKEND'] = 'Agg'

import pandas as pd
import torch
from fastai.callback.all import CSVLogger
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from safetensors.torch import load_file

from bpv_fastai.categorizer import Categorizer, OnnxCategorizer
from bpv_fastai.cli.evaluate import bpv_evaluate
from bpv_fastai.cli.predict import bpv_predict
from bpv_fastai.cli.train import bpv_train
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.resume import Checkpoints, FitState

BASE = Path(tempfile.gettempdir())  # set by `main`; holds catalog.csv, titles.csv and the models a and b
Categorizer.chunk_size = 300
OUTPUTS = 'out.tsv.gz', 'out.csv', 'out.parquet'


# What is disturbed. Each works in the current folder, and `results` gives what has to be the same
def train_network(seed=1):
    "A script that trains one network and saves it"
    set_seed(seed)
    dls = TitleDataLoaders.from_df(BASE/'catalog.csv', path='.', bs=32, verbose=False)
    learn = bpv_learner(dls, nh=8, cell='qrnn')
    checkpoints = Checkpoints(minutes=.0002)
    with learn.quiet(): learn.fit_one_cycle(3, cbs=[checkpoints, CSVLogger()])
    Categorizer.from_learner(learn).save('model')


def train_options(threads=1) -> dict:
    return dict(epochs=2, cell='qrnn', nh=8, bs=32, checkpoint=.0002, threads=threads)


def train_ensemble(): bpv_train(str(BASE/'catalog.csv'), 'model', nolinear=True, plain=True, **train_options())


def train_side_by_side(): bpv_train(str(BASE/'catalog.csv'), 'model', nolinear=True, plain=True, **train_options(2))


def label():
    for out in OUTPUTS: bpv_predict(str(BASE/'a'), str(BASE/'titles.csv'), out, top=2, threads=1, quiet=True)


def save():
    both = [Categorizer.load(BASE/name) for name in 'ab']
    for i in range(12): both[i % 2].save('model')


def export():
    for name in 'ab': Categorizer.load(BASE/name).to_onnx('onnx', int8=name == 'b')


def evaluate(): bpv_evaluate(str(BASE/'a'), str(BASE/'catalog.csv'), out='evaluation', threads=1)


def no_times(report: dict) -> dict: return {k: v for k, v in report.items() if isinstance(v, (int, str)) or 'f1' in k}


def saved_model() -> dict:
    "Read a model, without its report and checksum, in which there are times"
    description = json.loads(Path('model/categorizer.json').read_text())
    kept = {k: v for k, v in description.items() if k not in ('report', 'checksum')}
    return dict(weights=Path('model/weights.safetensors').read_bytes(), description=kept)


def left_to_continue() -> list:
    "Checkpoints, trained members and labelled parts in the current folder"
    members = list(Path().glob('**/ensemble/*.safetensors'))
    return [*Path().glob('**/*.checkpoint'), *members, *(p for p in Path().glob('.*.parts/*') if p.name[0] != '.')]


def results(act) -> dict:
    "Read what an act has made in the current folder, without what differs from run to run: times"
    if act is train_network:
        lines = Path('history.csv').read_text().splitlines()
        return saved_model() | dict(rows=[li.rsplit(',', 1)[0] for li in lines])
    if act in (train_ensemble, train_side_by_side):
        return saved_model() | dict(scores=no_times(json.loads(Path('model/report.json').read_text())))
    if act is save: return saved_model()
    if act is export: return {p.name: p.read_bytes() for p in sorted(Path('onnx').iterdir())}
    paths = [Path(out) for out in OUTPUTS] if act is label else sorted(Path('evaluation').iterdir())
    return {p.name: p.read_bytes() for p in paths}


def check_files(act, expected: dict):
    "Raise an error for a visible file that is half, in the current folder, after a disturbance"
    for path in Path().rglob('*'):
        if any(part.startswith('.') for part in path.parts) or path.is_dir(): continue
        if path.suffix == '.checkpoint': FitState.read(path)
        elif path.suffix in ('.json', '.scores'): json.loads(path.read_bytes())
        elif path.suffix == '.safetensors': load_file(path)
        elif path.name in expected and act is not export: assert path.read_bytes() == expected[path.name], f'half {path}'
    if Path('model/categorizer.json').exists(): Categorizer.load('model')
    if Path('onnx/onnx.json').exists(): OnnxCategorizer('onnx')


# How it is disturbed
SIGNALS = {name: getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGKILL')}
EVENTS = *SIGNALS, 'disk full', 'second process'


class Child:
    "A fork that works in a folder, in a session of its own"
    def __init__(self, work, folder: Path, largest_file: int | None = None):
        reader, writer = os.pipe()
        self.reader, self.output, self.code = reader, '', None
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            os.set_blocking(reader, False)
            return
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
            for fd in (1, 2): os.dup2(writer, fd)
            os.chdir(folder)
            sys.dont_write_bytecode = True  # Python does not notice that a compiled module is cut off
            if largest_file is not None: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            work()
            code = 0
        except SystemExit as e:  # as the interpreter does it
            if isinstance(e.code, str): print(e.code, file=sys.stderr)
            code = e.code if isinstance(e.code, int) else 1
        except KeyboardInterrupt as e:
            print(repr(e), file=sys.stderr)
            code = 130
        except BaseException as e: print(repr(e), file=sys.stderr)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception): stream.flush()
            os._exit(code)

    def is_alive(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, 2**16): self.output += data.decode(errors='replace')
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait(self, seconds: float = 120.) -> bool:
        "Wait for the end; return whether it came"
        end = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < end: time.sleep(.002)
        return not self.is_alive()

    def left(self, seconds: float = 20.) -> list:
        "Processes of its session that are left after some seconds, which are then killed"
        end = time.monotonic() + seconds
        while (pids := list(session(self.pid))) and time.monotonic() < end: time.sleep(.02)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
        os.close(self.reader)
        return pids


def session(sid: int):
    "Yield the ids of a session's processes"
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(')')[2].split()
            if int(fields[3]) == sid and fields[0] != 'Z': yield int(path.parent.name)


def run(work, folder: Path):
    "Let a child finish its work. Raise an error if it fails"
    child = Child(work, folder)
    finished, left = child.wait(), child.left()
    assert finished and child.code == 0 and not left, f'exit code {child.code}, {len(left)} left: {child.output[-600:]}'
    return child


def untrue(act, event: str, child: Child, folder: Path) -> str:
    "What is wrong with how a disturbed child ended, and with what it said"
    said, code = child.output, child.code
    if 'Traceback' in said: return 'a traceback'
    named = re.search(r'continues from (\S+?)[\'")\s]', said)
    if named and not (folder/named[1]).exists(): return f'{named[1]} does not exist'
    if event in SIGNALS: return '' if code in (0, 130, -SIGNALS[event]) else 'exit code'
    if code == 0: return ''
    full, taken = 'File too large|os error 27|Errno 27', 'another (process|fit|training) |at work in this folder'
    wanted = full if event == 'disk full' else taken
    return '' if re.search(wanted, said) else 'another reason'


def disturb(act, event: str, folder: Path, seconds: float, expected: dict, rng: random.Random, late: bool) -> dict:
    "Disturb an act and do it again; return what went wrong, and whether it was not done and had left something"
    largest = int(10 ** rng.uniform(2.5, 5)) if event == 'disk full' else None
    moment = math.inf if late else time.monotonic() + rng.uniform(0, seconds)
    children = [Child(act, folder, largest)]
    os.chdir(folder)
    at_first_file = not late and rng.random() < .5  # what is at stake begins there
    while event != 'disk full' and children[0].is_alive():
        if moment == math.inf and left_to_continue(): moment = time.monotonic() + rng.uniform(0, seconds / 8)
        elif at_first_file and any(files for _, _, files in os.walk(folder)):
            at_first_file, moment = False, min(moment, time.monotonic() + rng.expovariate(8 / seconds))
        # between two outputs of a labelling nothing is left for a while
        if time.monotonic() >= moment and (not late or left_to_continue()): break
        time.sleep(.001)
    undone = children[0].is_alive()
    if event == 'second process': children.append(Child(act, folder))
    elif event == 'SIGKILL' and children[0].is_alive(): os.kill(children[0].pid, signal.SIGKILL)
    elif event in SIGNALS and children[0].is_alive():
        with contextlib.suppress(ProcessLookupError, PermissionError): os.killpg(children[0].pid, SIGNALS[event])
    ended, left = [c.wait() for c in children], sum((c.left() for c in children), [])
    problems = [f'{len(left)} processes left'] if left else []
    problems += [f'{problem}: {c.output[-400:]!r} ({c.code})' for c in children
                 if (problem := untrue(act, event, c, folder))]
    if not all(ended): problems.append('it did not end')
    if event == 'second process' and all(c.code for c in children): problems.append('neither of two has done it')
    left_over = left_to_continue()
    try:
        run(lambda: check_files(act, expected), folder)
        is_done = event == 'second process' and act is not save
        if is_done: run(lambda: check_results(act, expected), folder)
        again = run(act, folder)
        if act is train_network and left_over and 'continuing from' not in again.output: problems.append('not resumed')
        run(lambda: check_results(act, expected), folder)
    except AssertionError as e: problems.append(str(e))
    undone |= event == 'disk full' and bool(children[0].code)
    return dict(problem='; '.join(problems), undone=undone, continued=bool(left_over))


def names(folder: Path) -> list: return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def check_results(act, expected: dict):
    "Raise an error for other results than those of an undisturbed run"
    made = results(act)
    assert made == expected, f'other {[k for k in expected if made.get(k) != expected[k]]}'


ACTS = dict(zip(('one network', 'ensemble', 'side by side', 'label', 'save', 'export', 'evaluate'),
                (train_network, train_ensemble, train_side_by_side, label, save, export, evaluate)))


def prepare():
    "Make the inputs in `BASE`, in a child"
    df = synthetic_catalog(500, 5)
    df.to_csv(BASE/'catalog.csv', index=False)
    df[['title']].sample(1_500, replace=True, random_state=0).to_csv(BASE/'titles.csv', index=False)
    for seed, name in enumerate('ab', start=1):
        (BASE/f'train_{name}').mkdir()
        os.chdir(BASE/f'train_{name}')
        train_network(seed)
        shutil.move('model', BASE/name)


@call_parse
def main(
    runs: int = 228, # how many, spread over the cells of the table; 228 are 6 of each, and 2 of each side by side
    seed: int = 0, # of the moments and of the order
    acts: str = ','.join(ACTS), # which
    events: str = ','.join(EVENTS), # which
    late: bool = False, # disturb trainings and labellings when they have left something to continue from
    out: str = None, # file for the table, as JSON
):
    "Disturb, do it again, compare, and print a table of what went wrong"
    global BASE
    torch.set_num_threads(1)
    BASE, rng = Path(tempfile.mkdtemp()), random.Random(seed)
    run(prepare, BASE)
    seconds, expected, wanted = {}, {}, {}
    for name in acts.split(','):
        folder = BASE/name.replace(' ', '_')
        folder.mkdir()
        begin = time.monotonic()
        run(ACTS[name], folder)
        seconds[name] = time.monotonic() - begin
        here = os.getcwd()
        os.chdir(folder)
        expected[name], wanted[name] = results(ACTS[name]), names(folder)
        os.chdir(here)
    print('seconds undisturbed:', ', '.join(f'{name} {s:.1f}' for name, s in seconds.items()), flush=True)
    cells = [(name, event) for name in seconds for event in events.split(',')]
    rounds = (cells if i % 3 == 0 else [cell for cell in cells if cell[0] != 'side by side'] for i in itertools.count())
    rows, folder = [], BASE/'run'
    for name, event in itertools.islice((c for cells in rounds for c in rng.sample(cells, len(cells))), runs):
        folder.mkdir()
        can_wait = late and name not in ('save', 'export', 'evaluate')
        row = disturb(ACTS[name], event, folder, seconds[name], expected[name], rng, can_wait)
        others = set(names(folder)) ^ set(wanted[name])
        problem = row.pop('problem') or (f'other files: {others}' if others else '')
        if can_wait and event == 'SIGKILL' and not row['continued']: problem = problem or 'nothing to continue from'
        rows.append(dict(act=name, event=event, failed=bool(problem)) | row)
        if problem: print(f'{len(rows)}: {name}, {event}: {problem}', flush=True)
        shutil.rmtree(folder)
    shutil.rmtree(BASE)
    table = pd.DataFrame(rows).assign(runs=1).groupby(['act', 'event'], sort=False).sum()
    for column in ('failed', 'undone', 'continued'):
        shown = (table[column].astype(str) + ' of ' + table['runs'].astype(str)).unstack().fillna('')
        print(f'{column}, of runs:', shown.to_string(), sep='\n')
    n_failed, n_undone = int(table['failed'].sum()), int(table['undone'].sum())
    print(f'{n_failed} of {len(rows)} runs failed; {n_undone} were disturbed before they were done')
    if out:
        cells = [dict(act=act, event=event) | {k: int(v) for k, v in c.items()} for (act, event), c in table.iterrows()]
        Path(out).write_text(json.dumps(dict(runs=len(rows), failed=n_failed, undone=n_undone, cells=cells), indent=1))
    if n_failed or not n_undone: sys.exit(1)
