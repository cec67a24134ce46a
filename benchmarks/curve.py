"""Weighted F1 with the same labels for everybody: the default training, its parts, linear SVMs and fastText.

    python benchmarks/curve.py                                   # 2,000 to 200,000 USDA titles, 3 seeds: hours
    python benchmarks/curve.py --sizes 2000,10000                # the small ones
    python benchmarks/curve.py --catalog games --sizes 10000     # another catalog (benchmarks/catalogs.py)
    python benchmarks/curve.py --catalog games --by supplier     # titles of other suppliers judge
    python benchmarks/curve.py --tables                          # only the tables, from runs made before

A seed draws `n` labelled titles and test titles (`labelled_split`). Everybody gets the labelled ones and nothing else.
This library holds some of them out to judge members and to fit decisions, then trains on all where there are up to
20,000, and fits its rule on the test titles without their labels, unless these are of other groups. The SVMs choose C among .3, 1 and 3 on a fifth of the
labelled titles (at most 20,000) and then train on all; fastText does so with at least three settings, and as many of 43
as can begin in the seconds that our training took, at most ten minutes.

Runs are kept in benchmarks/results/curve, a file for each catalog, size and seed, and are not repeated.
Seconds are comparable where all run on one core: `OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/curve.py`."""
import copy
import json
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from common import fasttext_ids, fasttext_model, fasttext_search, half_interval, results, save, train_default
from fastcore.script import call_parse
from splits import Judge, labelled_split
from timing import timed

import bpv_fastai
from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.titles import CategoryVocab
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.use.baseline import choose_C, linear_svm

runs = results/'curve'
# Runs of another code are kept, too; a table that mixes them says so
code = zlib.crc32(b''.join(p.read_bytes() for p in sorted(Path(bpv_fastai.__file__).parent.rglob('*.py'))))
rivals = 'SVM, words', 'SVM, characters', 'SVM, both', 'fastText'


def judged(learn: Ensemble, judge: Judge) -> dict:
    "Score an ensemble by the most probable category, with the rule of its held-out titles, and as `bpv_predict` does"
    cat, titles = Categorizer.from_learner(learn), judge.test['title']
    ways = dict(best=dict(decide='best'), rule=dict(decide='f1', adapt=False), f1=dict(decide='f1'))
    return {way: judge(cat.predict(titles, progress=False, **options)['category']) for way, options in ways.items()}


def ours(labelled: pd.DataFrame, judge: Judge, seed: int) -> dict:
    "Score the default training, what was held out of it, and the members that have a share"
    learn, recipe, seconds = train_default(labelled, seed, group='group' if 'group' in labelled else None)
    names, final = learn.reports['member'].tolist(), learn.final
    table = learn.decider.table
    held_out = dict(titles=len(learn.dls.valid_ds), best=table.loc[('best wins', 'raw'), 'f1'],
                    f1=table.loc[('expected F1', 'calibrated'), 'f1'])
    scores = dict(default=judged(final, judge) | dict(
        seconds=seconds, held_out=held_out, shares=dict(zip(names, learn.model.shares or [])), recipe=asdict(recipe),
        member_seconds=dict(zip(names, learn.reports['seconds'])), final=recipe.final, code=f'{code:08x}'))
    if recipe.final: scores['default, not trained on all'] = judged(learn, judge)
    kept = learn.model.used if recipe.final else range(len(names))  # of the members, in `final`
    for i, member in enumerate(kept):
        name, is_it = names[member], np.arange(len(kept)) == i
        alone = judged(with_shares(final, is_it), judge)['best']
        scores[name] = dict(f1=alone, seconds=learn.reports['seconds'][member])
        rest = np.array(final.model.shares or [1.] * len(kept)) * ~is_it
        if rest.any(): scores[f'without {name}'] = judged(with_shares(final, rest), judge)
    return scores


def with_shares(learn: Ensemble, shares: np.ndarray) -> Ensemble:
    "Return an ensemble of the same members with other shares, and with the decisions of all together"
    made = Ensemble([learn], progress=False)
    made.model.shares, made.fitted_decider = (shares / shares.sum()).tolist(), copy.copy(learn.fitted_decider)
    made.fitted_decider.weights = None
    return made


def svm(kind: str, labelled: pd.DataFrame, judge: Judge) -> dict:
    "Score a linear SVM with C chosen on a fifth of the labelled titles"
    titles, categories, options = labelled['title'], labelled['category'], dict(kind=kind, max_cells=None)
    C, seconds_choosing = timed(choose_C, titles, categories, **options)
    model, seconds = timed(linear_svm, titles, categories, C=C, **options)
    f1 = judge(model.predict(judge.test['title']))
    return dict(f1=f1, C=C, seconds=seconds_choosing + seconds, seconds_choosing=seconds_choosing)


def fasttext(labelled: pd.DataFrame, judge: Judge, limit: float) -> dict:
    "Score fastText, with settings chosen on a fifth of the labelled titles and then trained on all"
    vocab, part = CategoryVocab.fit(labelled['category']), labelled.sample(frac=1, random_state=0)
    def inputs(df): return df['title'].str.lower().tolist(), vocab.encode(df['category'])
    cut = min(len(part) // 5, 4_000)
    best = fasttext_search(inputs(part[cut:]), inputs(part[:cut]), len(vocab), limit)
    model, seconds = timed(fasttext_model, *inputs(labelled), **best['options'])
    categories = vocab.decode(fasttext_ids(model, judge.test['title'].str.lower()))
    return dict(f1=judge(categories), seconds=best['seconds'] + seconds, tried=best['tried'], **best['options'])


def run(catalog: str, n: int, seed: int, by: str, only: str, rivals_alone: bool):
    "Score all contenders on one split, each kept as soon as it is done"
    name = f"{catalog}{' by ' * bool(by)}{by}".replace(' ', '-')
    path = runs/f'{name}_{n}_{seed}.json'
    scores = json.loads(path.read_text()) if path.exists() else {}
    labelled, test = labelled_split(catalog, n, seed, by)
    judge = Judge(test)

    def keep(new: dict):
        scores.update(new, titles=len(labelled), test_titles=len(test), categories=labelled['category'].nunique(),
                      characters=round(labelled['title'].str.len().mean(), 1))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(scores, indent=1))
        print(name, n, seed, {k: round(v['f1'], 4) for k, v in new.items()}, flush=True)

    if 'default' not in scores and not rivals_alone: keep(ours(labelled, judge, seed))
    for kind in ('words', 'both', 'characters'):
        if f'SVM, {kind}' not in scores and kind in only: keep({f'SVM, {kind}': svm(kind, labelled, judge)})
    if 'fastText' not in scores and 'fastText' in only and 'default' in scores:
        keep({'fastText': fasttext(labelled, judge, min(600, scores['default']['seconds']))})


def summary(values: list) -> dict:
    "Average scores over seeds, with half a 95% interval, and take the median of seconds"
    f1 = [v['f1'] for v in values]
    means = {way: float(np.mean([v[way] for v in values])) for way in ('best', 'rule') if way in values[0]}
    seconds = [v['seconds'] for v in values if 'seconds' in v]
    return dict(f1=float(np.mean(f1)), half=half_interval(f1), n=len(f1)) | means | (
        dict(seconds=float(np.median(seconds))) if seconds else {})


def table() -> dict:
    "Summarize each catalog, size and contender, and the lead over the best of the rivals that were run on a split"
    values, codes = {}, set()
    for path in sorted(runs.glob('*_*_*.json')):
        catalog, n, _ = path.stem.split('_')
        scores, row = json.loads(path.read_text()), values.setdefault(catalog, {}).setdefault(int(n), {})
        for name, score in scores.items():
            if isinstance(score, dict): row.setdefault(name, []).append(score)
        best = max((scores[name]['f1'] for name in rivals if name in scores), default=None)
        if best is None or 'default' not in scores: continue
        row.setdefault('lead', []).append(dict(f1=scores['default']['f1'] - best))
        codes.add(scores['default'].get('code'))
        held_out = scores['default']['held_out']
        row.setdefault('held-out score minus true one', []).append(
            dict(f1=held_out['f1'] - scores['default']['f1'], best=held_out['best'] - scores['default']['best']))
    if len(codes) > 1: print(f'runs of {len(codes)} states of the code')
    return {catalog: {str(n): {name: summary(v) for name, v in row.items()} for n, row in sorted(sizes.items())}
            for catalog, sizes in values.items()}


@call_parse
def main(
    catalog: str = 'usda', # or kicad, goods, software, games
    sizes: str = '2000,10000,40000,200000', # labelled titles
    seeds: int = 3, # splits of each size
    first: int = 0, # the first of them
    by: str = '', # no group of this column has titles among labelled and test titles; 'first word' for any catalog
    only: str = 'words,both,characters,fastText', # rivals to run
    rivals_alone: bool = False, # do not train the default; fastText is searched for as long as that took, so it waits
    tables: bool = False, # only the tables
):
    "Train, judge, save"
    if not tables:
        for seed in range(first, first + seeds):
            for n in map(int, sizes.split(',')): run(catalog, n, seed, by, only, rivals_alone)
    result = table()
    for name, rows in result.items():
        print(name)
        print(pd.DataFrame({n: {k: v['f1'] for k, v in row.items()} for n, row in rows.items()}).round(4).to_string())
    save('curve', dict(table=result))
