"""What calibration and decisions bring on real probabilities, and what they cost at the challenge's size.

    python benchmarks/decisions.py                  # a minute, from benchmarks/results/usda_probs.npz
    python benchmarks/decisions.py --train_first    # train anew: 128 wide, 198,000 USDA titles, 5 epochs

Every figure is cross-fitted: half of the validation titles is judged by what was fitted on the other half, over several
random halvings."""
import subprocess
import sys
import time

import numpy as np
import pandas as pd
from common import results, save
from fastcore.script import call_parse
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from bpv_fastai.data.samples import usda_foods
from bpv_fastai.decide.calibration import ProbabilityCalibrator, calibration_error
from bpv_fastai.decide.decider import judge_decisions
from bpv_fastai.decide.probabilities import TopProbs, as_top_probs
from bpv_fastai.decide.rules import ExpectedF1, F1Cutoffs
from bpv_fastai.learner import bpv_learner
from bpv_fastai.train.loaders import TitleDataLoaders

saved = results/'usda_probs.npz'


def train(epochs: int, nh: int):
    "Train on three quarters of the USDA titles; keep the 24 largest probabilities of each of the others"
    dls = TitleDataLoaders.from_df(usda_foods(), bs=256, seed=42)
    learn = bpv_learner(dls, nh=nh)
    learn.fit_linear_cycle(epochs, 1.)
    with learn.quiet(): probs, targs = learn.get_preds()
    top = as_top_probs(probs.numpy(), k=24)
    np.savez_compressed(saved, values=top.values.astype(np.float16), ids=top.ids.astype(np.int16),
                        targs=targs.numpy().astype(np.int16), n_categories=dls.c, nh=nh, epochs=epochs,
                        train_titles=len(dls.train_ds))


def probabilities() -> tuple:
    "Read the saved probabilities as a full matrix, the tail spread evenly, and the true categories"
    with np.load(saved) as f: stored = {name: f[name] for name in f}
    values, ids = stored['values'].astype(np.float32), stored['ids'].astype(np.int64)
    n_categories = int(stored['n_categories'])
    tail = np.maximum(1 - values.sum(1, keepdims=True), 0) / (n_categories - values.shape[1])
    probs = np.repeat(tail, n_categories, 1)
    np.put_along_axis(probs, ids, values, 1)
    return probs, stored['targs'].astype(np.int64)


def at_temperature(logs: np.ndarray, temperature: float) -> np.ndarray:
    "Probabilities from log-probabilities at another temperature"
    z = logs / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def log_loss(probs: np.ndarray, targs: np.ndarray) -> float:
    "Mean negative log-probability of the true category; probabilities are scaled to add up to 1"
    p = probs[np.arange(len(targs)), targs] / np.maximum(probs.sum(1), 1e-12)
    return float(-np.log(np.maximum(p, 1e-12)).mean())


def brier_score(probs: np.ndarray, targs: np.ndarray) -> float:
    "Squared distance to the truth, summed over categories and averaged over titles: 0 (perfect) to 2"
    return float((np.einsum('ij,ij->i', probs, probs) - 2 * probs[np.arange(len(targs)), targs] + 1).mean())


def temperature_scaling(fit_probs, fit_targs, probs) -> np.ndarray:
    "The temperature with the smallest log loss (Guo et al., On Calibration of Modern Neural Networks, 2017)"
    fit_logs, logs = (np.log(np.maximum(p, 1e-30)) for p in (fit_probs, probs))
    def loss(log_t): return log_loss(at_temperature(fit_logs, np.exp(log_t)), fit_targs)
    log_t = minimize_scalar(loss, bounds=(-2, 2), method='bounded', options=dict(xatol=1e-3)).x
    return at_temperature(logs, float(np.exp(log_t)))


def isotonic(fit_probs, fit_targs, probs) -> np.ndarray:
    "Any rising curve; the many claims near zero, which would only slow it down, stay as they are"
    claims = fit_probs.ravel()
    kept = claims > min(.002, claims.max() / 2)
    true = (np.arange(fit_probs.shape[1]) == np.asarray(fit_targs)[:, None]).ravel()
    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(claims[kept], true[kept])
    return np.where(probs > .002, curve.predict(probs.ravel()).reshape(probs.shape), probs)


def compare_calibrations(fit_probs, fit_targs, probs, targs) -> pd.DataFrame:
    "Calibration error, Brier score and log loss of each method, fitted on some titles and judged on others"
    methods = {'none': probs, 'piecewise linear': ProbabilityCalibrator().fit(fit_probs, fit_targs).transform(probs),
               'temperature': temperature_scaling(fit_probs, fit_targs, probs),
               'isotonic': isotonic(fit_probs, fit_targs, probs)}
    return pd.DataFrame({name: dict(calibration_error=calibration_error(p.max(1), p.argmax(1) == targs),
                                    brier=brier_score(p, targs), log_loss=log_loss(p, targs))
                         for name, p in methods.items()}).T


def quality(rounds: int) -> dict:
    "Decisions and calibration over random halvings: mean and spread"
    probs, targs = probabilities()
    tables, errors, leaks = [], [], []
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        a, b = np.array_split(rng.permutation(len(targs)), 2)
        tops = [as_top_probs(probs[half], k=24) for half in (a, b)]
        tables.append(judge_decisions(list(zip(tops, (targs[a], targs[b])))))
        few_a, few_b = a[:8_000], b[:8_000]  # the other methods need the full matrix
        errors.append(compare_calibrations(probs[few_a], targs[few_a], probs[few_b], targs[few_b]))
        shuffled = rng.permutation(targs)
        leaks.append(judge_decisions(list(zip(tops, (shuffled[a], shuffled[b])))).f1)
        print(f'halving {seed + 1} of {rounds}', flush=True)
    f1 = pd.concat([table.f1 for table in tables], axis=1)
    gains = f1 - f1.loc[('best wins', 'raw')]
    spread = dict(gain=gains.mean(axis=1), gain_std=gains.std(axis=1))
    decisions = (sum(tables) / rounds).assign(**spread)
    calibration, leak = sum(errors) / rounds, sum(leaks) / rounds
    top = as_top_probs(probs, k=24)
    passed = (top.values >= F1Cutoffs.fit(top).cutoffs[top.ids]).any(1)
    print(decisions.round(4).to_string(), '\n')
    print(calibration.round(4).to_string(), '\n')
    print('weighted F1 with labels at random:', leak.round(4).to_dict())
    print(f'{1 - passed.mean():.1%} of titles pass no cutoff')
    return dict(valid_titles=len(targs), categories=probs.shape[1], rounds=rounds,
                decisions={' / '.join(key): row for key, row in decisions.T.to_dict().items()},
                calibration=calibration.T.to_dict(),
                random_labels={' / '.join(key): score for key, score in leak.items()},
                pass_no_cutoff=float(1 - passed.mean()))


def batches(n: int, c: int, bs: int = 4096):
    "Probabilities as a network gives them, peaked and unequal, batch after batch"
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((bs, c), dtype=np.float32)
    logits = 3 * noise - 2 * np.log(np.arange(1, c + 1, dtype=np.float32)) / 2
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
    code = (f'import sys; sys.path.insert(0, {str(results.parent)!r}); import decisions, resource\n'
            f'decisions.{what}({n}, {c}); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)')
    ran = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    if ran.returncode:
        return dict(error=ran.stderr.strip().split('\n')[-1] or f'ended with {ran.returncode}')
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
    result['size'] = {what: in_process(what, n_titles, n_categories) for what in ('compact', 'straightforward')}
    result['size'] |= dict(titles=n_titles, categories=n_categories)
    save('decisions', result)
