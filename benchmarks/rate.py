"""Is the rate that `lr_find` suggests right? Weighted F1 at a grid of rates and at the suggestion.

Small networks (64 wide) and bags on USDA titles, with SGD and with Adam. A rate that is far behind on the first
split is not tried on the others. Every run is a file in `results/rate/`; what is there is not run again, so several
processes may work side by side.
  python benchmarks/rate.py --sizes 2000,10000 --seeds 0,1,2
  python benchmarks/rate.py --summary_only       # the table from all files, results/rate.json
  python benchmarks/rate.py --other_catalogs     # other catalogs: the suggestion and its multiples
"""
import json
import statistics
import time
import warnings
from functools import cache
from itertools import product

import torch
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from filelock import FileLock, Timeout

from bpv_fastai.data.errors import TitleWarning, TrainingDiverged
from bpv_fastai.data.samples import usda_foods
from bpv_fastai.learner import TitleLearner, bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from catalogs import labelled_titles
from common import NoValidation, f1_of_logits, results, save
from splits import loaders

folder = results/'rate'
FAR_BEHIND = .05  # weighted F1; between splits the distance of two rates changes by less
adam_rates = [.0005, .001, .002, .004, .008, .016, .032, .064]
grids = dict(lstm=dict(sgd=[.06, .125, .25, .5, 1., 2., 4., 8.], adam=adam_rates),
             qrnn=dict(sgd=[.06, .125, .25, .5, 1., 2., 4., 8.], adam=adam_rates),
             bag=dict(sgd=[.6, 1.25, 2.5, 5., 10., 20., 40., 80.], adam=adam_rates))
catalogs_elsewhere = ('kicad', 'software')
multiples = [.25, .5, 1, 2, 4]  # of the suggestion
epochs = dict(net={2_000: 16, 3_000: 14, 10_000: 8, 40_000: 4}, bag={2_000: 30, 3_000: 25, 10_000: 12, 40_000: 6})


@cache
def data(n: int, seed: int, catalog: str | None = None) -> TitleDataLoaders:
    "Draw `n` titles to train on and at most 4,000 to judge by, in categories that training has"
    df = usda_foods() if catalog is None else labelled_titles(catalog)
    df = df.sample(min(len(df), n + 4_000), random_state=seed).reset_index(drop=True)
    train, test = df[:n], df[n:]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', TitleWarning)  # six titles in 4,000 differ from a training title in case alone
        return loaders(train, test[test['category'].isin(set(train['category']))], seed)


def learner(kind: str, opt: str, n: int, seed: int, catalog: str | None = None) -> TitleLearner:
    "Create an untrained learner"
    set_seed(seed)
    options = dict(opt_func=Adam) if opt == 'adam' else {}
    dls = data(n, seed, catalog)
    learn = ngram_learner(dls, **options) if kind == 'bag' else bpv_learner(dls, nh=64, cell=kind, **options)
    return learn.remove_cb(learn.f1_calibration)


def f1_at(rate: float, kind: str, opt: str, n: int, seed: int, catalog: str | None = None) -> float | None:
    "Train at a rate and return the weighted F1, None after a divergence"
    learn = learner(kind, opt, n, seed, catalog)
    try:
        with learn.quiet(), learn.added_cbs(NoValidation()):
            if kind == 'bag': learn.fit_flat_cos(epochs['bag'][n], rate, pct_start=0)
            else: learn.fit_one_cycle(epochs['net'][n], rate)
        with learn.quiet(): probs, targs = learn.get_preds()
    except TrainingDiverged: return None
    return f1_of_logits(probs, targs.numpy())


def run(kind: str, opt: str, n: int, seed: int, rate: float | str) -> dict:
    "Measure one rate, or the suggested one"
    start = time.process_time()
    if rate == 'suggested':
        with learner(kind, opt, n, seed).quiet() as learn: rate = learn.lr_find(show_plot=False).knee
    return dict(rate=rate, f1=f1_at(rate, kind, opt, n, seed), seconds=round(time.process_time() - start, 1))


def elsewhere(n: int = 3_000, seed: int = 0):
    "Measure the suggestion and its multiples on other catalogs, and print the weighted F1 of each"
    rows = []
    for catalog, kind, opt in product(catalogs_elsewhere, grids, ('sgd', 'adam')):
        where = (kind, opt, n, seed, catalog)
        with learner(*where).quiet() as learn: rate = learn.lr_find(show_plot=False).knee
        f1s = {multiple: f1_at(multiple * rate, *where) or 0. for multiple in multiples}
        rows.append(dict(catalog=catalog, kind=kind, opt=opt, suggested=rate, f1=f1s))
        print(catalog, kind, opt, f'{rate:.3g}', {m: round(f1, 3) for m, f1 in f1s.items()}, flush=True)
    save('rate_elsewhere', dict(titles=n, rows=rows))


def measured(kind: str, opt: str, n: int, seed: int) -> dict[float, float]:
    "Return the weighted F1 by rate of what has been measured, 0 after a divergence"
    found = ((rate, folder/f'{kind}-{opt}-{n}-{seed}-{rate}.json') for rate in grids[kind][opt])
    return {rate: json.loads(path.read_text())['f1'] or 0. for rate, path in found if path.exists()}


def worth_trying(kind: str, opt: str, n: int, seed: int) -> list[float]:
    "Return the rates that are not far behind on the first split; there, all"
    first = measured(kind, opt, n, 0)
    if not seed or len(first) < len(grids[kind][opt]): return grids[kind][opt]
    return [rate for rate, f1 in first.items() if f1 >= max(first.values()) - FAR_BEHIND]


def summary() -> list[dict]:
    "Compare, in each cell, the mean weighted F1 at the suggestion with the best rate's"
    rows = []
    for kind, opt, n in product(grids, ('sgd', 'adam'), epochs['net']):
        paths = sorted(folder.glob(f'{kind}-{opt}-{n}-*-suggested.json'))
        suggested = {int(p.stem.split('-')[3]): json.loads(p.read_text()) for p in paths}
        if 0 not in suggested: continue
        by_seed = [measured(kind, opt, n, seed) for seed in suggested]
        means = {rate: statistics.mean(f1s[rate] for f1s in by_seed if rate in f1s) for rate in by_seed[0]}
        best = max((rate for rate in means if all(rate in f1s for f1s in by_seed)), key=means.get)
        f1 = statistics.mean(r['f1'] or 0. for r in suggested.values())
        rows.append(dict(kind=kind, opt=opt, titles=n, seeds=len(suggested), best_rate=best, best_f1=means[best],
                         suggested=[r['rate'] for r in suggested.values()], f1=f1, behind=means[best] - f1,
                         diverged=sum(r['f1'] is None for r in suggested.values()), grid=means))
    return rows


@call_parse
def main(
    sizes: str = '2000,10000,40000', # numbers of training titles
    seeds: str = '0,1,2', # of split and weights
    kinds: str = 'bag,qrnn,lstm', # of networks
    rates: str = 'all', # 'all', 'grid', or 'suggested' for the suggestion alone
    summary_only: bool = False, # run nothing, and write the table
    other_catalogs: bool = False, # measure on other catalogs instead
):
    "Measure what is missing, and write the table"
    torch.set_num_threads(1)
    if other_catalogs: return elsewhere()
    folder.mkdir(parents=True, exist_ok=True)
    jobs = product(sizes.split(','), seeds.split(','), kinds.split(','), ('sgd', 'adam'))
    for n, seed, kind, opt in () if summary_only else jobs:
        tried = worth_trying(kind, opt, int(n), int(seed)) if rates != 'suggested' else []
        for rate in tried + ['suggested'] * (rates != 'grid'):
            path = folder/f'{kind}-{opt}-{n}-{seed}-{rate}.json'
            lock = FileLock(path.with_name(f'{path.name}.lock'))
            if path.exists(): continue
            try: lock.acquire(blocking=False)
            except Timeout: continue  # another process is at it
            result = run(kind, opt, int(n), int(seed), rate)
            path.write_text(json.dumps(result) + '\n')
            lock.release()
            print(path.name, result, flush=True)
    rows = summary()
    for row in rows:
        rates = ', '.join(f'{rate:.3g}' for rate in row['suggested'])
        print(f"{row['kind']:5}{row['opt']:5}{row['titles']:7,} best {row['best_f1']:.3f} at {row['best_rate']:g}, "
              f"suggested {row['f1']:.3f} at {rates}")
    save('rate', dict(rows=rows))
