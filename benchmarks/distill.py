"""A student of a tenth of a pair's arithmetic: on labels alone, taught by a pair with n-grams, and taught with titles
that have no label; beside fastText.

    python benchmarks/distill.py

Titles and split are those of benchmarks/paper.py at its small scale; the titles without label are other USDA titles."""
import time
from functools import partial

import numpy as np
from common import fasttext_search, half_interval, save, weighted_f1
from fastai.torch_core import default_device, set_seed
from fastcore.script import call_parse
from splits import paper_catalog, paper_scales
from timing import seconds

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.samples import usda_foods
from bpv_fastai.distill import distill
from bpv_fastai.ensemble import Ensemble, members_of
from bpv_fastai.learner import bpv_learner
from bpv_fastai.models.ngrams import NgramBag
from bpv_fastai.models.precision import has_native_bf16
from bpv_fastai.train.callbacks import best_preds
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import Member, Recipe, ngram_epochs


def f1_of(learn) -> float:
    "Compute the weighted F1 of the most probable category on the validation titles"
    with learn.no_bar(): best = best_preds(learn)
    return weighted_f1(best['targs'], best['preds'], learn.dls.c)


def titles_per_second(learn, titles: list) -> float:
    "Time the second of two passes of `Categorizer.predict`"
    cat = Categorizer.from_learner(learn)
    cat.predict(titles[:5_000], progress=False)
    return len(titles) / seconds(cat.predict, titles, progress=False)


def network_multiply_adds(net, length: float) -> float:
    "Count multiplications with addition of one network for a title of `length` tokens"
    c = net.config
    if isinstance(net, NgramBag): return c['dim'] * (4 * length + c['n_categories'])  # about 4 n-grams a character
    widths = [c['emb_sz'], *[c['nh']] * (c['n_layers'] - 1)]  # of what goes into each layer
    gates = {'lstm': lambda width: 4 * (width + c['nh']), 'qrnn': lambda width: 6 * width}[c['cell']]
    return length * sum(c['nh'] * gates(width) for width in widths) + len(c['views']) * c['nh'] * c['n_categories']


def multiply_adds(learn, length: float) -> float:
    "Count multiplications with addition for labelling one title: recurrent layers for each token, and the last layer"
    return float(sum(network_multiply_adds(net, length) for net, _ in members_of(learn)))


def fasttext_f1(dls) -> list:
    "Score fastText with the best of a few settings, chosen on the validation titles themselves; [] if not installed"
    def inputs(ds): return [title.lower() for title in ds.titles.decode()], ds.targets
    try: return [fasttext_search(inputs(dls.train_ds), inputs(dls.valid_ds), dls.c)['f1']]
    except ImportError: return []


def trained_alone(dls, epochs: int, bf16: bool, **student):
    "Train a student on labels alone"
    learn = bpv_learner(dls, **student)
    if bf16: learn.to_bf16()
    with learn.quiet(): learn.fit_linear_cycle(epochs, 1.)
    return learn


@call_parse
def main(
    seeds: int = 3, # students of each kind
    nh: int = 90, # width of the student, which has one layer
    emb_sz: int = 24, # of the student
    epochs: int = 30, # of the student on labelled titles
    unlabelled: int = 200_000, # titles without label
    epochs_more: int = 12, # of the student on all of them
):
    "Train the pair, then the students"
    scale, bf16 = paper_scales['small'], has_native_bf16(default_device())
    df, foods = paper_catalog(scale), usda_foods()
    dls = TitleDataLoaders.from_df(df, bs=scale['bs'], val_bs=256, seed=42, verbose=False)
    others = foods[~foods['title'].isin(set(df['title']))].sample(unlabelled, random_state=0)['title'].tolist()
    start, (teacher_epochs, lr_max) = time.perf_counter(), scale['long']
    recipe = Recipe.pairs(epochs=teacher_epochs, lr_max=lr_max, nh=scale['nh'])
    recipe.members.append(Member('ngrams', ngram_epochs(len(dls.train_ds)), optimizer='adam', schedule='falling'))
    teacher = Ensemble.train(dls, recipe, n_jobs=2, bf16=bf16, progress=False)
    f1 = dict(teacher=[f1_of(teacher)], fasttext=fasttext_f1(dls), alone=[], taught=[], taught_more=[])
    print('teacher', f1['teacher'], 'fastText', f1['fasttext'], f'{time.perf_counter() - start:.0f} s', flush=True)
    options = dict(nh=nh, emb_sz=emb_sz, n_layers=1, bf16=bf16)
    students = dict(
        alone=partial(trained_alone, dls, epochs, **options),
        taught=partial(distill, teacher, epochs, progress=False, **options),
        taught_more=partial(distill, teacher, epochs_more, unlabelled=others, progress=False, **options))
    for seed in range(seeds):
        for name, train in students.items():
            set_seed(seed)
            start = time.perf_counter()
            student = train()
            f1[name].append(f1_of(student))
            print(name, seed, round(f1[name][-1], 4), f'{time.perf_counter() - start:.0f} s', flush=True)
    length = float(dls.train_ds.titles.lengths.mean())
    means = {name: float(np.mean(values)) for name, values in f1.items()}
    speeds = dict(teacher=titles_per_second(teacher, others[:20_000]), student=titles_per_second(student, others))
    kept = {name: (means[name] - means['alone']) / (means['teacher'] - means['alone'])
            for name in ('taught', 'taught_more')}
    print(means, 'of the gain kept:', kept, speeds)
    save('distill', dict(
        f1=f1, mean=means, half={name: half_interval(values) for name, values in f1.items()}, kept=kept,
        titles_per_second=speeds,
        multiply_adds=dict(teacher=multiply_adds(teacher, length), student=multiply_adds(student, length)),
        bf16=bf16, nh=nh, emb_sz=emb_sz, epochs=epochs, unlabelled=unlabelled, epochs_more=epochs_more,
        train=len(dls.train_ds)))
