"""Weighted F1 against the number of training titles, and against seconds: the default training, its parts, linear SVMs and fastText.

    python benchmarks/curve.py                                   # 2,000 to 200,000 USDA titles, 3 seeds: hours on two cores
    python benchmarks/curve.py --sizes 2000,10000 --seeds 3      # the small ones
    python benchmarks/curve.py --tables                          # only the table, from runs made before

Each title once; a seed draws training, validation (a third as many, at most 20,000) and 20,000 test titles, on which all are judged. Validation titles
are for what is not training: shares, calibration and decisions of ours, fastText's settings, for which it gets as many seconds as our training took, at
most ten minutes. C of the SVMs is chosen among .3, 1 and 3 on a fifth of the training titles (at most 20,000). Runs are kept in benchmarks/results/curve; what
is there is not run again. Seconds are comparable where all run on one core: `OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/curve.py`."""
import json
import random
import time
from itertools import product

import numpy as np
import pandas as pd
import torch
from common import fasttext_ids, fasttext_model, results, save
from fastcore.script import call_parse
from scipy.stats import t as student_t
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from bpv_fastai.all import *

runs = results/'curve'
fasttext_settings = [(25, .5, 2, (2, 5)), (50, .5, 2, (2, 5)), (25, 1., 1, (2, 5))]  # epochs, rate, words in a row, lengths of pieces
fasttext_settings += random.Random(0).sample([s for s in product((25, 50, 100), (.3, .5, 1.), (1, 2, 3), ((0, 0), (2, 5), (3, 6))) if s not in fasttext_settings], 40)


def split(n: int, seed: int) -> tuple:
    "Training, validation and test titles; those to judge on have categories that training titles have"
    n_valid = min(n // 3, 20_000)
    df = usda_foods().sample(n + n_valid + 20_000, random_state=seed).reset_index(drop=True)
    train, valid, test = df[:n], df[n:n + n_valid], df[n + n_valid:]
    known = set(train['category'])
    return train, valid[valid['category'].isin(known)], test[test['category'].isin(known)]


class Judge:
    "Weighted F1 on the test titles"
    def __init__(self, test):
        self.vocab, self.test = CategoryVocab.fit(test['category']), test

    def __call__(self, said) -> float:
        targs, preds = self.vocab.encode(self.test['category']), self.vocab.encode(said)
        preds[preds < 0] = len(self.vocab)  # a category that no test title has is wrong, whichever it is
        return CategoryCounts(len(self.vocab) + 1).add(targs, preds).averages()['f1']


def ours(train, valid, judge: Judge, seed: int) -> dict:
    "The default training, together and in parts; each with the most probable category and with decisions"
    df = pd.concat([train.assign(is_valid=False), valid.assign(is_valid=True)], ignore_index=True)
    choice = default_training(len(train))
    dls = TitleDataLoaders.from_df(df, valid_col='is_valid', bs=choice.pop('bs'), val_bs=256, seed=seed, verbose=False)
    start, half = time.perf_counter(), means_bf16('auto', dls.device)
    made = Ensemble.train(dls, ngrams=True, bf16=half, seeds=[10 * seed, 10 * seed + 1], progress=False, **choice)
    seconds, each = time.perf_counter() - start, made.reports['seconds'].tolist()
    found = {}
    def add(name, learn, seconds):
        cat = Categorizer.from_learner(learn)
        f1 = {rule: judge(cat.predict(judge.test['title'], decide=rule, progress=False)['category']) for rule in ('best', 'f1')}
        found[name] = dict(f1=f1['f1'], best=f1['best'], seconds=seconds, shares=learn.model.shares)
    with made.no_bar():
        add('default', made, seconds)
        add('networks', made.drop(2), sum(each[:2]) / min(2, max(1, torch.get_num_threads())))
        learn, start = ngram_learner(dls).remove_cb(F1Calibration), time.perf_counter()
        with learn.no_bar(), learn.no_logging(): learn.fit_flat_cos(ngram_epochs(len(train)), pct_start=0)
        seconds = time.perf_counter() - start
        add('n-grams', Ensemble([learn], progress=False), seconds)
    return found | dict(choice=choice)


def svm(features: TfidfVectorizer, train, judge: Judge) -> dict:
    "A linear SVM with C chosen on held-out training titles"
    start = time.perf_counter()
    part = train.sample(min(len(train), 20_000), random_state=0)
    fit, held = part[len(part) // 5:], part[:len(part) // 5]
    scores = {C: (make_pipeline(features, LinearSVC(C=C, random_state=0)).fit(fit['title'], fit['category']).predict(held['title']) == held['category']).mean() for C in (.3, 1., 3.)}
    C = max(scores, key=scores.get)
    chosen = time.perf_counter() - start
    model = make_pipeline(features, LinearSVC(C=C, random_state=0)).fit(train['title'], train['category'])
    seconds = time.perf_counter() - start
    return dict(f1=judge(model.predict(judge.test['title'])), C=C, seconds=seconds, seconds_choosing=chosen)


def fasttext(train, valid, judge: Judge, limit: float) -> dict:
    "fastText, with the best on the validation titles of the settings that it had time for; at least three. (Its own autotune found worse ones in that time, and hung)"
    vocab, start = CategoryVocab.fit(train['category']), time.perf_counter()
    (titles, targs), (known, known_targs) = ((part['title'].str.lower().tolist(), vocab.encode(part['category'])) for part in (train, valid))
    best, tried = (-1., None, None), 0
    for epoch, lr, words, (minn, maxn) in fasttext_settings:
        if tried >= 3 and time.perf_counter() - start > limit: break
        options = dict(epoch=epoch, lr=lr, wordNgrams=words, minn=minn, maxn=maxn, dim=100, bucket=500_000)
        tried += 1
        try: model = fasttext_model(titles, targs, **options)
        except RuntimeError as e:
            if 'NaN' not in str(e): raise
            continue  # it diverges with some settings
        f1 = CategoryCounts(len(vocab)).add(known_targs, fasttext_ids(model, known)).averages()['f1']
        if f1 > best[0]: best = f1, options, model
    seconds = time.perf_counter() - start
    return dict(f1=judge(vocab.decode(fasttext_ids(best[2], judge.test['title'].str.lower()))), seconds=seconds, tried=tried, **best[1])


def run(n: int, seed: int):
    "All contenders on one split, each kept as soon as it is done"
    path = runs/f'{n}_{seed}.json'
    found = json.loads(path.read_text()) if path.exists() else {}
    train, valid, test = split(n, seed)
    judge = Judge(test)
    def keep(more):
        found.update(more); path.parent.mkdir(exist_ok=True); path.write_text(json.dumps(found, indent=1))
        print(n, seed, {k: round(v['f1'], 4) if 'f1' in v else v for k, v in more.items()}, flush=True)
    if 'default' not in found: keep(ours(train, valid, judge, seed))
    if 'SVM, words' not in found: keep({'SVM, words': svm(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), train, judge)})
    if 'fastText' not in found: keep({'fastText': fasttext(train, valid, judge, min(600, found['default']['seconds']))})
    if 'SVM, characters' not in found: keep({'SVM, characters': svm(TfidfVectorizer(analyzer='char_wb', ngram_range=(2, 5), sublinear_tf=True), train, judge)})


def table() -> dict:
    "Mean and half width of a 95% interval over seeds, for each size and contender, and the lead over the best of the others"
    found = {}
    for path in sorted(runs.glob('*_*.json'), key=lambda p: tuple(map(int, p.stem.split('_')))):
        n, one = int(path.stem.split('_')[0]), json.loads(path.read_text())
        rivals = [one[k]['f1'] for k in ('SVM, words', 'SVM, characters', 'fastText') if k in one]  # a lead is over all three
        row = found.setdefault(n, {})
        for name, v in one.items():
            if 'f1' in v: row.setdefault(name, []).append((v['f1'], v['seconds'], v.get('best')))
        if len(rivals) == 3: row.setdefault('lead', []).append((one['default']['f1'] - max(rivals), 0, None))
    def summed(values):
        f1 = np.array([v[0] for v in values])
        half = float(student_t.ppf(.975, len(f1) - 1) * f1.std(ddof=1) / len(f1)**.5) if len(f1) > 1 else None
        best = [v[2] for v in values if v[2] is not None]
        return dict(f1=float(f1.mean()), half=half, n=len(f1), seconds=float(np.median([v[1] for v in values]))) | (dict(best=float(np.mean(best))) if best else {})
    return {str(n): {name: summed(v) for name, v in row.items()} for n, row in sorted(found.items())}


@call_parse
def main(
    sizes: str = '2000,10000,40000,200000', # training titles
    seeds: int = 3, # splits of each size
    tables: bool = False, # only the table
):
    "Train, judge, save"
    if not tables:
        for seed in range(seeds):
            for n in map(int, sizes.split(',')): run(n, seed)
    found = table()
    print(pd.DataFrame({n: {k: v['f1'] for k, v in row.items()} for n, row in found.items()}).round(4).to_string())
    save('curve', dict(table=found))
