"""The paper's claims on USDA titles (each title once, split with seed 42): tables 1 to 4 and figures 4 and 5.

    python benchmarks/paper.py --scale small                     # a CPU: 128 wide, a sample of titles; 50 networks, about an hour on two cores
    python benchmarks/paper.py --scale medium                    # a CPU: 128 wide, all 264,343 titles, one pair; a quarter of an hour on two cores
    python benchmarks/paper.py --scale full --device cuda        # 2x512, all 264,343 titles, 20 and 40 epochs
    python benchmarks/paper.py --scale small --tables            # only the tables, from networks trained before

Each network leaves its validation probabilities in benchmarks/runs/; a run that is stopped goes on with those that are missing.
The result is benchmarks/results/paper_SCALE.json; nbs/91_paper.ipynb draws it."""
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from common import fasttext_ids, fasttext_model, half_interval, save
from fastai.callback.core import Callback, CancelValidException
from fastai.torch_core import set_seed
from fastcore.script import call_parse

from bpv_fastai.all import *
from bpv_fastai.callbacks import F1Calibration

views = dict(last=('last',), copies=('last',) * 4, concat=('last', 'avg', 'max'), bpv=('last', 'avg', 'max', 'min'))
scales = dict(small=dict(rows=32_000, nh=128, bs=128, short=(8, 1.), long=(16, .8), seeds=5),
              medium=dict(rows=0, nh=128, bs=128, long=(8, 1.), seeds=1),
              full=dict(rows=0, nh=512, bs=256, short=(20, 1.), long=(40, .8), seeds=5))


def jobs(scale: dict) -> list:
    "What is to be trained, most telling first: name, views, direction, schedule, seed"
    if 'short' not in scale: return [(f'bpv-{way}-long-{s}', 'bpv', way, 'long', s) for s in range(scale['seeds']) for way in ('forward', 'backward')]
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


class Runs:
    "What the networks of a scale left behind"
    def __init__(self, scale: dict, folder: Path):
        self.scale, self.folder, self.df = scale, folder, catalog(scale)
        train, valid = split_catalog(self.df, .25, 42)
        self.train, self.valid = train, valid
        self.vocab = CategoryVocab.fit(train['category'])
        self.targs, self.kept = self.vocab.encode(valid['category']), {}

    def logs(self, view, way, length, seed) -> np.ndarray:
        "Log-probabilities (n, categories) of a network; float16 has no probabilities below 6e-8"
        name = f'{view}-{way}-{length}-{seed}'
        if name not in self.kept:
            with np.load(self.folder/f'{name}.npz') as f:
                if 'diverged' in f: raise RuntimeError(f'{name} diverged: {f["diverged"]}')
                self.kept[name] = np.log(np.maximum(f['probs'].astype(np.float32), 5e-8))
        return self.kept[name]

    def together(self, members: list, average: str = 'log_prob') -> np.ndarray:
        "Probabilities of several networks, each (view, way, length, seed)"
        logs = [self.logs(*m) for m in members]
        if average == 'prob': return np.mean([np.exp(lp) for lp in logs], 0)
        mean = np.exp(np.mean(logs, 0))
        return mean / mean.sum(1, keepdims=True)

    def scores(self, members: list, average: str = 'log_prob') -> dict:
        return CategoryCounts(len(self.vocab)).add(self.targs, self.together(members, average).argmax(1)).averages()

    def decided(self, members: list) -> dict:
        "F1 by way of deciding, on calibrated probabilities, each half by what was fitted on the other"
        probs, half = self.together(members), np.random.default_rng(0).permutation(len(self.targs)) % 2 == 1
        table = judge_decisions([(as_top_probs(probs[h]), self.targs[h]) for h in (half, ~half)])
        return {way: dict(table.loc[(way, 'raw' if way == 'best wins' else 'calibrated')]) for way in ('best wins', 'cutoffs', 'cutoffs, rarest', 'expected F1')}


def interval(values) -> dict:
    "Mean and half the 95% interval of it (t distribution)"
    v = np.asarray(values, dtype=float)
    return dict(mean=float(v.mean()), half=half_interval(v), values=[round(float(x), 5) for x in v])


def groups(scale: dict) -> dict:
    "Which networks make each row of the tables, a list of members for each seed"
    seeds, made = range(scale['seeds']), {}
    for length, found in dict(short=('last', 'copies', 'concat', 'bpv'), long=('concat', 'bpv')).items():
        for view in found: made[f'{view} forward, {length}'] = [[(view, 'forward', length, s)] for s in seeds]
        for view in ('concat', 'bpv'):
            made[f'{view} backward, {length}'] = [[(view, 'backward', length, s)] for s in seeds]
            made[f'{view} pair, {length}'] = [[(view, w, length, s) for w in ('forward', 'backward')] for s in seeds]
            for way in ('forward', 'backward'): made[f'{view} two {way}, {length}'] = [[(view, way, length, s), (view, way, length, (s + 1) % scale['seeds'])] for s in seeds]
    return made


claims = [('pooling over baseline', 'concat forward, short', 'last forward, short', .010), ('BPV over baseline', 'bpv forward, short', 'last forward, short', .013),
          ('BPV over concat, short', 'bpv forward, short', 'concat forward, short', .003), ('BPV over concat, long', 'bpv forward, long', 'concat forward, long', .006),
          ('copies over baseline', 'copies forward, short', 'last forward, short', 0.), ('pair over one network', 'bpv pair, long', 'bpv forward, long', .013),
          ('pair over two forward', 'bpv pair, long', 'bpv two forward, long', None), ('pair over two backward', 'bpv pair, long', 'bpv two backward, long', None),
          ('BPV pair over concat pair, short', 'bpv pair, short', 'concat pair, short', .001), ('BPV pair over concat pair, long', 'bpv pair, long', 'concat pair, long', .004),
          ('long over short, BPV', 'bpv forward, long', 'bpv forward, short', .005)]


def baselines(runs: Runs) -> dict:
    "Linear SVM and, if it is installed, fastText on the same split"
    found, titles, truth = {}, runs.valid['title'].tolist(), runs.targs
    def judged(said, seconds): return CategoryCounts(len(runs.vocab)).add(truth, runs.vocab.encode(said)).averages() | dict(seconds=seconds)
    for C in (.5, 1.):
        model, seconds = linear_baseline(runs.train['title'], runs.train['category'], C)
        found[f'linear SVM, C={C}'] = judged(model.predict(titles), seconds)
    start = time.perf_counter()
    try: model = fasttext_model(runs.train['title'], runs.vocab.encode(runs.train['category']), epoch=25, lr=.5, wordNgrams=2, minn=2, maxn=5, dim=100)
    except ImportError: return found
    seconds = time.perf_counter() - start
    found['fastText'] = judged(runs.vocab.decode(fasttext_ids(model, titles)), seconds)
    return found


def figures(runs: Runs, best: list) -> dict:
    "Numbers behind the figures"
    sweep = pd.DataFrame(dict(np.load(runs.folder/'sweep.npz')))
    thin = sweep.groupby('mom', sort=False).apply(lambda g: g.iloc[::max(1, len(g) // 60)], include_groups=False).reset_index()
    calibration = {}
    for name, members in best.items():
        calibrator = ProbabilityCalibrator().fit(runs.together(members), runs.targs)
        calibration[name] = dict(claims=calibrator.steps['claims'].tolist(), promised=calibrator.steps['promised'].round(3).tolist(), true=calibrator.steps['true'].tolist(),
                                 knots=calibrator.knots.tolist(), ratios=calibrator.ratios.round(5).tolist())
    return dict(title_lengths=np.bincount(runs.df['title'].str.len()).tolist(), category_counts=runs.df['category'].value_counts().tolist(),
                sweep={c: thin[c].round(5).tolist() for c in ('mom', 'lr', 'loss')}, calibration=calibration)


def write_pair(name: str, scale: dict, runs: Runs):
    "One pair beside the linear models"
    members = [('bpv', way, 'long', 0) for way in ('forward', 'backward')]
    return save(f'paper_{name}', dict(scale=scale | dict(titles=len(runs.df), train=len(runs.train), valid=len(runs.valid), categories=len(runs.vocab)),
        forward=runs.scores(members[:1]), backward=runs.scores(members[1:]), pair=runs.scores(members), pair_decided=runs.decided(members), baselines=baselines(runs),
        seconds=[float(np.load(runs.folder/f'{"-".join(map(str, m))}.npz')['seconds']) for m in members]))


def write_tables(name: str, scale: dict, runs: Runs):
    "Everything that is drawn and said, as JSON"
    made = groups(scale)
    f1 = {row: [runs.scores(m) for m in members] for row, members in made.items()}
    rows = {row: {n: interval([s[n] for s in scores]) for n in ('precision', 'recall', 'f1')} for row, scores in f1.items()}
    differences = {c: interval([a['f1'] - b['f1'] for a, b in zip(f1[left], f1[right])]) | dict(paper=paper) for c, left, right, paper in claims}
    decisions = {}
    for row in ('concat forward, long', 'bpv forward, long', 'concat pair, long', 'bpv pair, long'):
        found = [runs.decided(m) for m in made[row]]
        decisions[row] = {way: {n: interval([d[way][n] for d in found]) for n in ('precision', 'recall', 'f1')} for way in found[0]}
        for way in ('cutoffs', 'cutoffs, rarest', 'expected F1'):
            differences[f'{way} over best wins, {row}'] = interval([d[way]['f1'] - d['best wins']['f1'] for d in found]) | dict(paper=.009 if way == 'cutoffs, rarest' and row.startswith('bpv pair') else None)
    n_pairs, averages = {}, {}
    for k in range(1, scale['seeds'] + 1):
        some = [[(v, w, 'long', s) for s in c for v in ('bpv',) for w in ('forward', 'backward')] for c in combinations(range(scale['seeds']), k)]
        found = [runs.scores(m)['f1'] for m in some]
        n_pairs[str(k)] = dict(f1=float(np.mean(found)), low=min(found), high=max(found), groups=len(found))
        averages[str(k)] = {a: float(np.mean([runs.scores(m, a)['f1'] for m in some])) for a in ('log_prob', 'prob')}
    everyone = [('bpv', w, 'long', s) for s in range(scale['seeds']) for w in ('forward', 'backward')]
    differences['1 pair to all pairs'] = dict(mean=n_pairs[str(scale['seeds'])]['f1'] - n_pairs['1']['f1'], half=None, paper=.008)
    seconds = {row: float(np.mean([np.load(runs.folder/f'{"-".join(map(str, m[0]))}.npz')['seconds'] for m in made[row]])) for row in made if len(made[row][0]) == 1}
    return save(f'paper_{name}', dict(scale=scale | dict(titles=len(runs.df), train=len(runs.train), valid=len(runs.valid), categories=len(runs.vocab)), rows=rows, differences=differences, decisions=decisions,
        n_pairs=n_pairs, averages=averages, all_pairs_decided=runs.decided(everyone), baselines=baselines(runs), seconds=seconds,
        figures=figures(runs, {'one network': [('bpv', 'forward', 'long', 0)], f"{scale['seeds']} pairs": everyone})))


@call_parse
def main(
    scale: str = 'small', # small, medium or full
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
    (write_tables if 'short' in scales[scale] else write_pair)(scale, scales[scale], Runs(scales[scale], runs))
