"""Weighted F1 against the number of training titles, and against seconds: the default training, its parts, linear SVMs and fastText.

    python benchmarks/curve.py                                   # 2,000 to 200,000 USDA titles, 3 seeds: hours on two cores
    python benchmarks/curve.py --sizes 2000,10000 --seeds 3      # the small ones
    python benchmarks/curve.py --tables                          # only the table, from runs made before

Each title once; a seed draws training, validation (a third as many, at most 20,000) and 20,000 test titles, on which all are judged. Validation titles
are for what is not training: shares, calibration and decisions of ours, fastText's settings: at least three, and no more than there are (43) or than can be
begun in the seconds that our training took, at most ten minutes. C of the SVMs is chosen among .3, 1 and 3 on a fifth of the training titles (at most 20,000). Runs are kept in benchmarks/results/curve; what
is there is not run again, but ours where `default_training` says something else now. Seconds are comparable where all run on one core: `OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/curve.py`."""
import json
import time

import numpy as np
import pandas as pd
import torch
from common import fasttext_ids, fasttext_search, half_interval, results, save
from fastcore.script import call_parse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from bpv_fastai.all import *

runs = results/'curve'


def split(n: int, seed: int) -> tuple:
    "Training, validation and test titles; those to judge on have categories that training titles have"
    n_valid = min(n // 3, 20_000)
    df = usda_foods().sample(n + n_valid + 20_000, random_state=seed).reset_index(drop=True)
    train, valid, test = df[:n], df[n:n + n_valid], df[n + n_valid:]
    known = set(train['category'])
    return train, valid[valid['category'].isin(known)], test[test['category'].isin(known)]


def loaders(train, other, seed: int, bs: int = 128) -> TitleDataLoaders:
    "Titles to train on, and others to validate on"
    df = pd.concat([train.assign(is_valid=False), other.assign(is_valid=True)], ignore_index=True)
    return TitleDataLoaders.from_df(df, valid_col='is_valid', bs=bs, val_bs=256, seed=seed, verbose=False)


def trained(dls, choice: dict, seed: int) -> tuple[Ensemble, float]:
    "What `bpv_train` trains, with seeds of its own, and the seconds"
    start, half = time.perf_counter(), means_bf16('auto', dls.device)
    made = Ensemble.train(dls, ngrams=True, bf16=half, seeds=[10 * seed, 10 * seed + 1], progress=False, **choice)
    return made, time.perf_counter() - start


class Judge:
    "Weighted F1 on the test titles"
    def __init__(self, test):
        self.vocab, self.test = CategoryVocab.fit(test['category']), test

    def __call__(self, said) -> float:
        targs, preds = self.vocab.encode(self.test['category']), self.vocab.encode(said)
        preds[preds < 0] = len(self.vocab)  # a category that no test title has is wrong, whichever it is
        return CategoryCounts(len(self.vocab) + 1).add(targs, preds).averages()['f1']


def chosen(n: int) -> tuple[dict, int]:
    "The default training, and its batch, which is the loaders'"
    found = default_training(n)
    bs = found.pop('bs')
    return found, bs


def ours(train, valid, judge: Judge, seed: int) -> dict:
    "The default training, together and in parts; each with the most probable category and with decisions"
    choice, bs = chosen(len(train))
    dls = loaders(train, valid, seed, bs)
    made, seconds = trained(dls, choice, seed)
    each, found = made.reports['seconds'].tolist(), {}
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
    "fastText, with settings chosen on the validation titles"
    vocab = CategoryVocab.fit(train['category'])
    best = fasttext_search(*((part['title'].str.lower().tolist(), vocab.encode(part['category'])) for part in (train, valid)), len(vocab), limit)
    said = vocab.decode(fasttext_ids(best['model'], judge.test['title'].str.lower()))
    return dict(f1=judge(said), seconds=best['seconds'], tried=best['tried'], **best['options'])


def run(n: int, seed: int):
    "All contenders on one split, each kept as soon as it is done"
    path = runs/f'{n}_{seed}.json'
    found = json.loads(path.read_text()) if path.exists() else {}
    train, valid, test = split(n, seed)
    judge = Judge(test)
    def keep(more):
        found.update(more); path.parent.mkdir(exist_ok=True); path.write_text(json.dumps(found, indent=1))
        print(n, seed, {k: round(v['f1'], 4) if 'f1' in v else v for k, v in more.items()}, flush=True)
    if found.get('choice') != chosen(n)[0]: keep(ours(train, valid, judge, seed))
    if 'SVM, words' not in found: keep({'SVM, words': svm(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), train, judge)})
    if 'fastText' not in found: keep({'fastText': fasttext(train, valid, judge, min(600, found['default']['seconds']))})
    if 'SVM, characters' not in found: keep({'SVM, characters': svm(TfidfVectorizer(analyzer='char_wb', ngram_range=(2, 5), sublinear_tf=True), train, judge)})


def table() -> dict:
    "Mean and half width of a 95% interval over seeds, for each size and contender, and the lead over the best of the others that were run on a split"
    found = {}
    for path in sorted(runs.glob('*_*.json'), key=lambda p: tuple(map(int, p.stem.split('_')))):
        n, one = int(path.stem.split('_')[0]), json.loads(path.read_text())
        rivals = [one[k]['f1'] for k in ('SVM, words', 'SVM, characters', 'fastText') if k in one]
        row = found.setdefault(n, {})
        for name, v in one.items():
            if 'f1' in v: row.setdefault(name, []).append((v['f1'], v['seconds'], v.get('best')))
        if rivals and 'default' in one: row.setdefault('lead', []).append((one['default']['f1'] - max(rivals), 0, None))
    def summed(values):
        f1 = np.array([v[0] for v in values])
        best = [v[2] for v in values if v[2] is not None]
        return dict(f1=float(f1.mean()), half=half_interval(f1), n=len(f1), seconds=float(np.median([v[1] for v in values]))) | (dict(best=float(np.mean(best))) if best else {})
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
