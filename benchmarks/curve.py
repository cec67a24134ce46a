"""Weighted F1 against the number of training titles, and against seconds: the default training, its parts, linear SVMs
and fastText.

    python benchmarks/curve.py                          # 2,000 to 200,000 USDA titles, 3 seeds: hours on two cores
    python benchmarks/curve.py --sizes 2000,10000       # the small ones
    python benchmarks/curve.py --tables                 # only the table, from runs made before

Each title once; a seed draws training, validation (a third as many, at most 20,000) and 20,000 test titles, on which
all are judged. Validation titles are for what is not training: shares, calibration and decisions of this library,
settings of fastText. fastText tries at least three settings, and as many of 43 as can begin in the seconds that our
training took, at most ten minutes. C of the SVMs is chosen among .3, 1 and 3 on a fifth of the training titles (at most
20,000). Runs are kept in benchmarks/results/curve and not repeated, except ours where `Recipe.for_catalog` has changed.
Seconds are comparable where all run on one core: `OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/curve.py`."""
import json

import numpy as np
import pandas as pd
import torch
from common import (fasttext_ids, fasttext_search, half_interval, members_of_recipe, results, save,
                    train_default)
from fastcore.script import call_parse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from splits import Judge, loaders, usda_split
from timing import timed

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.titles import CategoryVocab
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.learner import ngram_learner
from bpv_fastai.train.callbacks import F1Calibration
from bpv_fastai.train.recipe import Recipe, ngram_epochs

runs = results/'curve'


def ours(train, valid, judge: Judge, seed: int) -> dict:
    "Score the default training and its parts, each with the most probable category and with decisions"
    recipe, scores = Recipe.for_catalog(len(train)), {}
    dls = loaders(train, valid, seed, recipe.bs)

    def add(name: str, learn, seconds: float):
        cat = Categorizer.from_learner(learn)
        f1 = {rule: judge(cat.predict(judge.test['title'], decide=rule, progress=False)['category'])
              for rule in ('best', 'f1')}
        scores[name] = dict(f1=f1['f1'], best=f1['best'], seconds=seconds, shares=learn.model.shares)

    ensemble, seconds = train_default(dls, recipe, seed)
    of_networks = ensemble.reports['seconds'].tolist()[:2]
    with ensemble.quiet():
        add('default', ensemble, seconds)
        add('networks', ensemble.drop(2), sum(of_networks) / min(2, max(1, torch.get_num_threads())))
    bag = ngram_learner(dls).remove_cb(F1Calibration)
    with bag.quiet(): _, seconds = timed(bag.fit_flat_cos, ngram_epochs(len(train)), pct_start=0)
    add('n-grams', Ensemble([bag], progress=False), seconds)
    return scores | dict(choice=members_of_recipe(recipe))


def svm(features: TfidfVectorizer, train, judge: Judge) -> dict:
    "Score a linear SVM with C chosen on held-out training titles"
    def fitted(C: float, df):
        return make_pipeline(features, LinearSVC(C=C, random_state=0)).fit(df['title'], df['category'])

    def choose_C() -> float:
        part = train.sample(min(len(train), 20_000), random_state=0)
        held_out, fit_on = part[:len(part) // 5], part[len(part) // 5:]
        accuracy = {C: (fitted(C, fit_on).predict(held_out['title']) == held_out['category']).mean()
                    for C in (.3, 1., 3.)}
        return max(accuracy, key=accuracy.get)

    C, seconds_choosing = timed(choose_C)
    model, seconds = timed(fitted, C, train)
    f1 = judge(model.predict(judge.test['title']))
    return dict(f1=f1, C=C, seconds=seconds_choosing + seconds, seconds_choosing=seconds_choosing)


def fasttext(train, valid, judge: Judge, limit: float) -> dict:
    "Score fastText, with settings chosen on the validation titles"
    vocab = CategoryVocab.fit(train['category'])
    def inputs(df): return df['title'].str.lower().tolist(), vocab.encode(df['category'])
    best = fasttext_search(inputs(train), inputs(valid), len(vocab), limit)
    categories = vocab.decode(fasttext_ids(best['model'], judge.test['title'].str.lower()))
    return dict(f1=judge(categories), seconds=best['seconds'], tried=best['tried'], **best['options'])


def run(n: int, seed: int):
    "Score all contenders on one split, each kept as soon as it is done"
    path = runs/f'{n}_{seed}.json'
    scores = json.loads(path.read_text()) if path.exists() else {}
    train, valid, test = usda_split(n, seed)
    judge = Judge(test)

    def keep(new: dict):
        scores.update(new)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(scores, indent=1))
        print(n, seed, {k: round(v['f1'], 4) if 'f1' in v else v for k, v in new.items()}, flush=True)

    if scores.get('choice') != members_of_recipe(Recipe.for_catalog(n)): keep(ours(train, valid, judge, seed))
    if 'SVM, words' not in scores:
        keep({'SVM, words': svm(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), train, judge)})
    if 'fastText' not in scores:
        keep({'fastText': fasttext(train, valid, judge, min(600, scores['default']['seconds']))})
    if 'SVM, characters' not in scores:
        features = TfidfVectorizer(analyzer='char_wb', ngram_range=(2, 5), sublinear_tf=True)
        keep({'SVM, characters': svm(features, train, judge)})


def summary(values: list) -> dict:
    "Average (f1, seconds, f1 of the most probable category) over seeds, with half a 95% interval"
    f1, seconds, best = zip(*values)
    result = dict(f1=float(np.mean(f1)), half=half_interval(f1), n=len(f1), seconds=float(np.median(seconds)))
    best = [value for value in best if value is not None]
    return result | (dict(best=float(np.mean(best))) if best else {})


def table() -> dict:
    "Summarize each size and contender, and the lead over the best of the others that were run on a split"
    values = {}
    for path in sorted(runs.glob('*_*.json')):
        n, scores = int(path.stem.split('_')[0]), json.loads(path.read_text())
        row = values.setdefault(n, {})
        for name, score in scores.items():
            if 'f1' in score: row.setdefault(name, []).append((score['f1'], score['seconds'], score.get('best')))
        rivals = [scores[name]['f1'] for name in ('SVM, words', 'SVM, characters', 'fastText') if name in scores]
        if rivals and 'default' in scores:
            row.setdefault('lead', []).append((scores['default']['f1'] - max(rivals), 0, None))
    return {str(n): {name: summary(v) for name, v in row.items()} for n, row in sorted(values.items())}


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
    rows = table()
    print(pd.DataFrame({n: {k: v['f1'] for k, v in row.items()} for n, row in rows.items()}).round(4).to_string())
    save('curve', dict(table=rows))
