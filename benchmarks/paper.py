"""The paper's claims on USDA titles (each title once, split with seed 42): tables 1 to 4 and figures 4 and 5.

    python benchmarks/paper.py --scale small              # 50 networks 128 wide, 32,000 titles: an hour on two cores
    python benchmarks/paper.py --scale medium             # one pair 128 wide, all 264,343 titles: a quarter of an hour
    python benchmarks/paper.py --scale full --device cuda # 2x512, all 264,343 titles, 20 and 40 epochs
    python benchmarks/paper.py --scale small --tables     # only the tables, from networks trained before

Each network leaves its validation probabilities in benchmarks/runs/; a run that was stopped continues with those that
are missing. The result is benchmarks/results/paper_SCALE.json; the tutorial on the paper draws it."""
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from common import fasttext_ids, fasttext_model, half_interval, save
from fastai.callback.core import Callback, CancelValidException
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from splits import paper_catalog, paper_scales
from timing import timed

from bpv_fastai.data.catalog import split_catalog
from bpv_fastai.data.errors import TrainingDiverged
from bpv_fastai.data.titles import CategoryVocab
from bpv_fastai.decide.calibration import ProbabilityCalibrator
from bpv_fastai.decide.decider import judge_decisions
from bpv_fastai.decide.metrics import CategoryCounts
from bpv_fastai.decide.probabilities import as_top_probs
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.callbacks import F1Calibration
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.use.baseline import linear_svm

views = dict(last=('last',), copies=('last',) * 4, concat=('last', 'avg', 'max'), bpv=('last', 'avg', 'max', 'min'))
directions = ('forward', 'backward')


class Job(NamedTuple):
    "One network to train"
    view: str # key of `views`
    direction: str # 'forward' or 'backward'
    length: str # 'short', 'long', or 'sweep': a sweep of rate and momentum
    seed: int

    @property
    def name(self) -> str: return 'sweep' if self.length == 'sweep' else '-'.join(map(str, self))


def jobs(scale: dict) -> list:
    "List what is to be trained, the most telling first"
    seeds = range(scale['seeds'])
    if 'short' not in scale: return [Job('bpv', direction, 'long', seed) for seed in seeds for direction in directions]
    short = [('bpv', 'forward'), ('last', 'forward'), ('concat', 'forward'), ('copies', 'forward'), ('bpv', 'backward'),
             ('concat', 'backward')]
    long = [('bpv', 'forward'), ('bpv', 'backward'), ('concat', 'forward'), ('concat', 'backward')]
    return [Job('bpv', 'forward', 'sweep', 0),
            *(Job(*network, 'short', seed) for seed in seeds for network in short),
            *(Job(*network, 'long', seed) for seed in seeds for network in long)]


# Training


class _ValidateAtTheEnd(Callback):
    "Validate only the last epoch"
    def before_validate(self):
        if self.epoch < self.n_epoch - 1 and self.learn.loss is not None: raise CancelValidException()


def learner(df, scale: dict, job: Job, device: str):
    "Create a network for a job, with its own seed for weights, dropout and the order of batches"
    set_seed(job.seed, reproducible=device == 'cpu')
    dls = TitleDataLoaders.from_df(df, valid_pct=.25, bs=scale['bs'], val_bs=256, seed=42, device=device, verbose=False)
    dls = type(dls)(dls.train.new(seed=1000 + job.seed), dls.valid, path=dls.path, device=dls.device)
    learn = bpv_learner(dls, nh=scale['nh'], views=views[job.view], backwards=job.direction == 'backward')
    return learn.remove_cb(F1Calibration)


def train(df, scale: dict, job: Job, device: str, path: Path):
    "Train one network and write its validation probabilities, or its sweep"
    learn, start = learner(df, scale, job, device), time.perf_counter()
    with learn.quiet():
        if job.length == 'sweep':
            sweep = learn.momentum_sweep(end_lr=3., num_it=len(learn.dls.train), show_plot=False)
            arrays = {name: sweep[name].to_numpy() for name in ('mom', 'lr', 'loss')}
        else:
            epochs, lr = scale[job.length]
            try:
                learn.fit_linear_cycle(epochs, lr, cbs=_ValidateAtTheEnd())
                seconds = time.perf_counter() - start
                arrays = dict(probs=learn.get_preds()[0].numpy().astype(np.float16), seconds=seconds)
            except TrainingDiverged as e: arrays = dict(diverged=str(e), seconds=time.perf_counter() - start)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    with open(temporary, 'wb') as f: np.savez(f, **arrays)
    temporary.replace(path)


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
    df, todo = paper_catalog(scale), jobs(scale)
    for i, job in enumerate(todo, 1):
        path = runs/f'{job.name}.npz'
        if path.exists() or not claim(path): continue
        _, seconds = timed(train, df, scale, job, device, path)
        path.with_suffix('.lock').unlink()
        print(f'{i} of {len(todo)}: {job.name}, {seconds:.0f} s', flush=True)


# Scores


class Runs:
    "The validation probabilities of the networks of a scale"
    def __init__(self, scale: dict, folder: Path):
        self.scale, self.folder, self.df = scale, folder, paper_catalog(scale)
        self.train, self.valid = split_catalog(self.df, .25, 42)
        self.vocab = CategoryVocab.fit(self.train['category'])
        self.targs, self.loaded = self.vocab.encode(self.valid['category']), {}

    def log_probs(self, job: Job) -> np.ndarray: # (n, categories)
        "Read the log-probabilities of a network; float16 has no probabilities below 6e-8"
        if job not in self.loaded:
            with np.load(self.folder/f'{job.name}.npz') as f:
                if 'diverged' in f: raise RuntimeError(f'{job.name} diverged: {f["diverged"]}')
                self.loaded[job] = np.log(np.maximum(f['probs'].astype(np.float32), 5e-8))
        return self.loaded[job]

    def seconds(self, job: Job) -> float: return float(np.load(self.folder/f'{job.name}.npz')['seconds'])

    def average(self, members: list, average: str = 'log_prob') -> np.ndarray:
        "Average the probabilities of several networks"
        log_probs = [self.log_probs(job) for job in members]
        if average == 'prob': return np.mean([np.exp(lp) for lp in log_probs], 0)
        mean = np.exp(np.mean(log_probs, 0))
        return mean / mean.sum(1, keepdims=True)

    def scores(self, members: list, average: str = 'log_prob') -> dict:
        "Score the most probable category"
        return CategoryCounts(len(self.vocab)).add(self.targs, self.average(members, average).argmax(1)).averages()

    def decided(self, members: list) -> dict:
        "Score each way of deciding, on calibrated probabilities, each half by what was fitted on the other"
        probs, half = self.average(members), np.random.default_rng(0).permutation(len(self.targs)) % 2 == 1
        table = judge_decisions([(as_top_probs(probs[h]), self.targs[h]) for h in (half, ~half)])
        ways = dict.fromkeys(('cutoffs', 'cutoffs, rarest', 'expected F1'), 'calibrated')
        return {way: dict(table.loc[(way, kind)]) for way, kind in ({'best wins': 'raw'} | ways).items()}

    def describe(self) -> dict:
        "Describe the scale and its split"
        return self.scale | dict(titles=len(self.df), train=len(self.train), valid=len(self.valid),
                                 categories=len(self.vocab))


def interval(values) -> dict:
    "Compute the mean and half its 95% interval (t distribution)"
    v = np.asarray(values, dtype=float)
    return dict(mean=float(v.mean()), half=half_interval(v), values=[round(float(x), 5) for x in v])


def groups(scale: dict) -> dict:
    "Return the networks of each row of the tables, a list of members for each seed"
    n, rows = scale['seeds'], {}
    for length, names in dict(short=('last', 'copies', 'concat', 'bpv'), long=('concat', 'bpv')).items():
        def each_seed(view: str, *member_directions: str):
            return [[Job(view, direction, length, seed) for direction in member_directions] for seed in range(n)]
        for view in names: rows[f'{view} forward, {length}'] = each_seed(view, 'forward')
        for view in ('concat', 'bpv'):
            rows[f'{view} backward, {length}'] = each_seed(view, 'backward')
            rows[f'{view} pair, {length}'] = each_seed(view, *directions)
            for direction in directions:
                rows[f'{view} two {direction}, {length}'] = [
                    [Job(view, direction, length, s) for s in (seed, (seed + 1) % n)] for seed in range(n)]
    return rows


claims = [  # name, row, row that it is compared with, the paper's difference
    ('pooling over baseline', 'concat forward, short', 'last forward, short', .010),
    ('BPV over baseline', 'bpv forward, short', 'last forward, short', .013),
    ('BPV over concat, short', 'bpv forward, short', 'concat forward, short', .003),
    ('BPV over concat, long', 'bpv forward, long', 'concat forward, long', .006),
    ('copies over baseline', 'copies forward, short', 'last forward, short', 0.),
    ('pair over one network', 'bpv pair, long', 'bpv forward, long', .013),
    ('pair over two forward', 'bpv pair, long', 'bpv two forward, long', None),
    ('pair over two backward', 'bpv pair, long', 'bpv two backward, long', None),
    ('BPV pair over concat pair, short', 'bpv pair, short', 'concat pair, short', .001),
    ('BPV pair over concat pair, long', 'bpv pair, long', 'concat pair, long', .004),
    ('long over short, BPV', 'bpv forward, long', 'bpv forward, short', .005)]


def baselines(runs: Runs) -> dict:
    "Score linear SVMs and, if it is installed, fastText on the same split"
    scores, titles = {}, runs.valid['title'].tolist()
    def score(preds, seconds):
        return CategoryCounts(len(runs.vocab)).add(runs.targs, preds).averages() | dict(seconds=seconds)
    for C in (.5, 1.):
        model, seconds = timed(linear_svm, runs.train['title'], runs.train['category'], C=C)
        scores[f'linear SVM, C={C}'] = score(runs.vocab.encode(model.predict(titles)), seconds)
    targs = runs.vocab.encode(runs.train['category'])
    options = dict(epoch=25, lr=.5, wordNgrams=2, minn=2, maxn=5, dim=100)
    try: model, seconds = timed(fasttext_model, runs.train['title'], targs, **options)
    except ImportError: return scores
    return scores | dict(fastText=score(fasttext_ids(model, titles), seconds))


# The result


def figures(runs: Runs, calibrated: dict) -> dict:
    "Return the numbers behind the figures"
    sweep = pd.DataFrame(dict(np.load(runs.folder/'sweep.npz')))
    def thin(rows): return rows.iloc[::max(1, len(rows) // 60)]
    sweep = sweep.groupby('mom', sort=False).apply(thin, include_groups=False).reset_index()
    calibration = {}
    for name, members in calibrated.items():
        calibrator = ProbabilityCalibrator().fit(runs.average(members), runs.targs)
        steps = calibrator.steps
        calibration[name] = dict(
            claims=steps['claims'].tolist(), promised=steps['promised'].round(3).tolist(), true=steps['true'].tolist(),
            knots=calibrator.knots.tolist(), ratios=calibrator.ratios.round(5).tolist())
    return dict(title_lengths=np.bincount(runs.df['title'].str.len()).tolist(),
                category_counts=runs.df['category'].value_counts().tolist(),
                sweep={name: sweep[name].round(5).tolist() for name in ('mom', 'lr', 'loss')}, calibration=calibration)


def write_pair(name: str, runs: Runs):
    "Write one pair beside the linear models"
    members = [Job('bpv', direction, 'long', 0) for direction in directions]
    save(f'paper_{name}', dict(
        scale=runs.describe(), forward=runs.scores(members[:1]), backward=runs.scores(members[1:]),
        pair=runs.scores(members), pair_decided=runs.decided(members), baselines=baselines(runs),
        seconds=[runs.seconds(job) for job in members]))


def decision_tables(runs: Runs, members_of_row: dict) -> tuple[dict, dict]:
    "Score the ways of deciding for four rows. Returns scores, and differences to the most probable category"
    decisions, differences = {}, {}
    for row in ('concat forward, long', 'bpv forward, long', 'concat pair, long', 'bpv pair, long'):
        decided = [runs.decided(members) for members in members_of_row[row]]
        decisions[row] = {way: {score: interval([d[way][score] for d in decided])
                                for score in ('precision', 'recall', 'f1')} for way in decided[0]}
        for way in ('cutoffs', 'cutoffs, rarest', 'expected F1'):
            paper = .009 if way == 'cutoffs, rarest' and row.startswith('bpv pair') else None
            gain = interval([d[way]['f1'] - d['best wins']['f1'] for d in decided])
            differences[f'{way} over best wins, {row}'] = gain | dict(paper=paper)
    return decisions, differences


def pairs_tables(runs: Runs) -> tuple[dict, dict]:
    "Score all groups of one to five pairs. Returns F1, and its mean by way of averaging"
    n, n_pairs, averages = runs.scale['seeds'], {}, {}
    for k in range(1, n + 1):
        all_groups = [[Job('bpv', direction, 'long', seed) for seed in seeds for direction in directions]
                      for seeds in combinations(range(n), k)]
        f1 = {average: [runs.scores(members, average)['f1'] for members in all_groups]
              for average in ('log_prob', 'prob')}
        best = f1['log_prob']
        n_pairs[str(k)] = dict(f1=float(np.mean(best)), low=min(best), high=max(best), groups=len(best))
        averages[str(k)] = {average: float(np.mean(values)) for average, values in f1.items()}
    return n_pairs, averages


def write_tables(name: str, runs: Runs):
    "Write all tables and figures"
    members_of_row, n = groups(runs.scale), runs.scale['seeds']
    scores = {row: [runs.scores(members) for members in groups] for row, groups in members_of_row.items()}
    rows = {row: {score: interval([s[score] for s in each]) for score in ('precision', 'recall', 'f1')}
            for row, each in scores.items()}
    differences = {}
    for claimed, row, other, paper in claims:
        gains = [a['f1'] - b['f1'] for a, b in zip(scores[row], scores[other])]
        differences[claimed] = interval(gains) | dict(paper=paper)
    decisions, more_differences = decision_tables(runs, members_of_row)
    n_pairs, averages = pairs_tables(runs)
    gain = n_pairs[str(n)]['f1'] - n_pairs['1']['f1']
    differences |= more_differences | {'1 pair to all pairs': dict(mean=gain, half=None, paper=.008)}
    all_pairs = [Job('bpv', direction, 'long', seed) for seed in range(n) for direction in directions]
    seconds = {row: float(np.mean([runs.seconds(*members) for members in groups]))
               for row, groups in members_of_row.items() if len(groups[0]) == 1}
    save(f'paper_{name}', dict(
        scale=runs.describe(), rows=rows, differences=differences, decisions=decisions, n_pairs=n_pairs,
        averages=averages, all_pairs_decided=runs.decided(all_pairs), baselines=baselines(runs), seconds=seconds,
        figures=figures(runs, {'one network': [Job('bpv', 'forward', 'long', 0)], f'{n} pairs': all_pairs})))


@call_parse
def main(
    scale: str = 'small', # small, medium or full
    workers: int = 0, # processes that train side by side; one a core on a CPU, one on a GPU if 0
    device: str = 'cpu', # cpu or cuda
    worker: bool = False, # be one of them
    tables: bool = False, # train nothing
):
    "Train the networks that are missing, then write the tables"
    folder = Path(__file__).parent/'runs'/f'paper_{scale}'
    folder.mkdir(parents=True, exist_ok=True)
    if worker: return work(paper_scales[scale], device, folder)
    if not tables:
        workers = workers or (os.cpu_count() if device == 'cpu' else 1)
        env = os.environ | dict(OMP_NUM_THREADS=str(max(1, os.cpu_count() // workers)))
        command = [sys.executable, __file__, '--scale', scale, '--device', device, '--worker']
        processes = [subprocess.Popen(command, env=env) for _ in range(workers)]
        if any([p.wait() for p in processes]): sys.exit('a worker failed: see above')
    write = write_tables if 'short' in paper_scales[scale] else write_pair
    write(scale, Runs(paper_scales[scale], folder))
