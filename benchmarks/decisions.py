"""What calibration and decisions bring on real probabilities, and what they cost at the challenge's size.

    python benchmarks/decisions.py            # a minute, from the probabilities in benchmarks/results/usda_probs.npz
    python benchmarks/decisions.py --train_first    # make these anew: a network 128 wide on 198,000 USDA titles, 5 epochs

Every figure is cross-fitted: half of the validation titles is judged by what was fitted on the other half, over several random halvings."""
import subprocess
import sys
import time

import numpy as np
import pandas as pd
from common import results, save
from fastcore.script import call_parse

from bpv_fastai.all import *

saved = results/'usda_probs.npz'


def train(epochs: int, nh: int):
    "Train on three quarters of the USDA titles; keep the 24 largest probabilities of each of the others"
    dls = TitleDataLoaders.from_df(usda_foods(), bs=256, seed=42)
    learn = bpv_learner(dls, nh=nh)
    learn.fit_linear_cycle(epochs, 1.)
    with learn.no_bar(): probs, targs = learn.get_preds()
    top = as_top_probs(probs.numpy(), k=24)
    np.savez_compressed(saved, values=top.values.astype(np.float16), ids=top.ids.astype(np.int16), targs=targs.numpy().astype(np.int16),
                        n_categories=dls.c, nh=nh, epochs=epochs, train_titles=len(dls.train_ds))


def probabilities() -> tuple:
    "What was saved as a full matrix (what is not among the 24 largest of a title is shared out evenly), and the true categories"
    with np.load(saved) as f: values, ids, targs, c = f['values'].astype(np.float32), f['ids'].astype(np.int64), f['targs'].astype(np.int64), int(f['n_categories'])
    rest = np.maximum(1 - values.sum(1, keepdims=True), 0) / (c - values.shape[1])
    probs = np.repeat(rest, c, 1)
    np.put_along_axis(probs, ids, values, 1)
    return probs, targs


def quality(rounds: int) -> dict:
    "Decisions and calibration over random halvings: mean and spread"
    probs, targs = probabilities()
    tables, errors, leaks = [], [], []
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        a, b = np.array_split(rng.permutation(len(targs)), 2)
        tops = [as_top_probs(probs[h], k=24) for h in (a, b)]
        tables.append(judge_decisions(list(zip(tops, (targs[a], targs[b])))))
        errors.append(compare_calibrations(probs[a[:8_000]], targs[a[:8_000]], probs[b[:8_000]], targs[b[:8_000]]))  # the others need the full matrix
        shuffled = rng.permutation(targs)
        leaks.append(judge_decisions(list(zip(tops, (shuffled[a], shuffled[b])))).f1)
        print(f'halving {seed + 1} of {rounds}', flush=True)
    f1 = pd.concat([t.f1 for t in tables], axis=1)
    table = pd.concat([sum(tables) / rounds, (f1 - f1.loc[('best wins', 'raw')]).mean(axis=1).rename('gain'), (f1 - f1.loc[('best wins', 'raw')]).std(axis=1).rename('gain_std')], axis=1)
    calibration, leak = sum(errors) / rounds, sum(leaks) / rounds
    top = as_top_probs(probs, k=24)
    passed = (top.values >= F1Cutoffs.fit(top).cutoffs[top.ids]).any(1)
    print(table.round(4).to_string(), '\n'); print(calibration.round(4).to_string(), '\n')
    print('weighted F1 with labels at random:', leak.round(4).to_dict())
    print(f'{1 - passed.mean():.1%} of titles pass no cutoff')
    return dict(valid_titles=len(targs), categories=probs.shape[1], rounds=rounds, decisions={' / '.join(k): v for k, v in table.T.to_dict().items()},
                calibration=calibration.T.to_dict(), random_labels={' / '.join(k): v for k, v in leak.items()}, pass_no_cutoff=float(1 - passed.mean()))


def batches(n: int, c: int, bs: int = 4096):
    "Probabilities as a network gives them, peaked and unequal, batch after batch"
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((bs, c), dtype=np.float32) - 2 * np.log(np.arange(1, c + 1, dtype=np.float32)) / 2)
    e = np.exp(logits)
    probs = e / e.sum(1, keepdims=True)
    for i in range(0, n, bs): yield np.roll(probs, 37 * i // bs, axis=1)[:min(bs, n - i)]


def compact(n: int, c: int):
    "From batches of probabilities to decisions in the compact form"
    targs = np.random.default_rng(1).integers(0, c, n)
    start = time.perf_counter()
    top = TopProbs.gather(batches(n, c))
    gathered = time.perf_counter() - start
    top = ProbabilityCalibrator().fit(top, targs).transform(top)
    F1Cutoffs.fit(top).predict(top)
    ExpectedF1.fit(top).predict(top)
    print(gathered, time.perf_counter() - start)


def straightforward(n: int, c: int):
    "Algorithm 1 as a loop over categories on the full matrix"
    probs = np.concatenate(list(batches(n, c)))
    start = time.perf_counter()
    cutoffs = np.zeros(c, np.float32)
    for j in range(c):
        p = np.sort(probs[:, j])[::-1]
        f1 = 2 * np.cumsum(p, dtype=np.float64) / (p.sum(dtype=np.float64) + np.arange(1, n + 1))
        cutoffs[j] = p[f1.argmax()]
    preds = np.where(probs >= cutoffs, probs, -1).argmax(1)
    print(0, time.perf_counter() - start)


def in_process(what: str, n: int, c: int) -> dict:
    "Seconds and peak memory of one of the two above in a process of its own"
    code = f'import sys; sys.path.insert(0, {str(results.parent)!r}); import decisions, resource; decisions.{what}({n}, {c}); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'
    ran = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    if ran.returncode: return dict(error=ran.stderr.strip().split('\n')[-1] or f'ended with {ran.returncode}')
    gathered, seconds, peak = ran.stdout.split()[-3:]
    result = dict(seconds=float(seconds), gather_seconds=float(gathered), peak_gb=int(peak) * 1024 / 1e9)
    print(f"{what}: {n:,} x {c:,} in {result['seconds']:.1f} s, peak memory {result['peak_gb']:.2f} GB")
    return result


@call_parse
def main(
    train_first: bool = False, # train the network and save its probabilities anew
    epochs: int = 5, # of that training
    nh: int = 128, # width of that network
    rounds: int = 5, # random halvings
    n_titles: int = 200_000, # of the size measured
    n_categories: int = 3_008, # of the size measured
):
    "Measure decisions"
    if train_first or not saved.exists(): train(epochs, nh)
    result = quality(rounds)
    result['size'] = {what: in_process(what, n_titles, n_categories) for what in ('compact', 'straightforward')} | dict(titles=n_titles, categories=n_categories)
    save('decisions', result)
