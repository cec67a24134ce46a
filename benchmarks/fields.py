"""What a column of text beside the title brings: title alone against title and text, with the same labels.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/fields.py               # default training, 3 seeds
    python benchmarks/fields.py --members                                    # linear model and n-grams on their own

A seed draws `n` labelled titles and test titles (`labelled_split`). Both trainings get the same labels and are judged by
weighted F1 of the most probable category on the same test titles. The text of kicad are keywords, that of software the
name of the product. Runs are kept in benchmarks/results/fields and not repeated."""
import json

import numpy as np
import pandas as pd
from common import f1_of_logits, fit, half_interval, log_probs_of, results, save, train_default
from fastai.basics import Adam
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from splits import Judge, labelled_split

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.fields import join_fields, text_fields
from bpv_fastai.learner import linear_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import ngram_epochs

runs = results/'fields'


def default_scores(labelled: pd.DataFrame, test: pd.DataFrame, seed: int, fields: tuple) -> dict:
    "Score the default training"
    learn, _, seconds = train_default(labelled, seed, text=','.join(map(str, fields)))
    answers = Categorizer.from_learner(learn.final).predict(test, decide='best', progress=False)
    return {'default': dict(f1=Judge(test)(answers['category']), seconds=seconds)}


def member_scores(labelled: pd.DataFrame, test: pd.DataFrame, seed: int, fields: tuple) -> dict:
    "Score a linear model and a bag of n-grams, each trained on all labelled titles"
    set_seed(seed)
    joined = [part.assign(title=join_fields(part, fields)) for part in (labelled, test)]
    dls = TitleDataLoaders.from_split(*joined, bs=128, val_bs=256, seed=seed, fields=fields)
    linear, bag = linear_learner(dls), ngram_learner(dls, opt_func=Adam)
    with linear.quiet(): linear.fit()
    seconds = fit(bag, ngram_epochs(len(labelled)), bag=True, lr=bag.lr)
    scores = dict(linear=linear, ngrams=bag)
    return {name: dict(f1=f1_of_logits(log_probs_of(learn, learn.dls.valid), dls.valid_ds.targets))
            for name, learn in scores.items()} | dict(seconds=seconds)


def run(catalog: str, n: int, seed: int, members: bool):
    "Score both trainings on one split, each kept as soon as it is done"
    path = runs/f'{catalog}_{n}_{seed}.json'
    scores = json.loads(path.read_text()) if path.exists() else {}
    labelled, test = labelled_split(catalog, n, seed)
    for name, fields in (('title', ()), ('title and text', text_fields('text'))):
        kept = scores.setdefault(name, {})
        if ('linear' if members else 'default') in kept: continue
        kept |= (member_scores if members else default_scores)(labelled, test, seed, fields)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(scores, indent=1))
        print(catalog, n, seed, name, {k: round(v['f1'], 4) for k, v in kept.items() if isinstance(v, dict)}, flush=True)


def table() -> list:
    "Average the gain of the text over seeds, with half its 95% interval"
    rows = {}
    for path in sorted(runs.glob('*_*_*.json')):
        catalog, n, _ = path.stem.split('_')
        scores = json.loads(path.read_text())
        for kind in ('default', 'linear', 'ngrams'):
            pair = [scores.get(name, {}).get(kind, {}).get('f1') for name in ('title', 'title and text')]
            if None not in pair: rows.setdefault((catalog, int(n), kind), []).append(pair)
    return [dict(catalog=catalog, titles=n, trained=kind, seeds=len(pairs), title=float(np.mean([a for a, _ in pairs])),
                 title_and_text=float(np.mean([b for _, b in pairs])), gain=float(np.mean([b - a for a, b in pairs])),
                 half=half_interval([b - a for a, b in pairs]))
            for (catalog, n, kind), pairs in rows.items()]


@call_parse
def main(
    catalogs: str = 'kicad,software', # catalogs with a column `text`, separated by commas
    n: int = 3_000, # labelled titles
    seeds: int = 3, # splits
    members: bool = False, # train a linear model and a bag of n-grams instead of what bpv_train trains
):
    "Train with and without the text, and write the means"
    for seed in range(seeds):
        for catalog in catalogs.split(','): run(catalog, n, seed, members)
    rows = table()
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    save('fields', dict(rows=rows))
