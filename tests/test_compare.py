"Comparison with other models: what they are, their scores and intervals, resuming, the command, the picture."
import json
import logging
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.cli import compare as command
from bpv_fastai.cli import plan
from bpv_fastai.cli.compare import bpv_compare, choose_contenders, fit_bpv, share_to_judge
from bpv_fastai.cli.plan import TrainOptions
from bpv_fastai.cli.train import bpv_train
from bpv_fastai.data.catalog import split_catalog
from bpv_fastai.data.errors import FileError, ResumeError, TitleError, TitleWarning
from bpv_fastai.data.files import locked
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.train.recipe import Member, Recipe
from bpv_fastai.use import compare
from bpv_fastai.use.baseline import choose_C, linear_svm, svm_kinds
from bpv_fastai.use.compare import (
    Comparison, Contender, Result, bootstrap_f1, compare_models, half_interval, label_points, other_contenders, saved_megabytes)

matplotlib.use('Agg')


@pytest.fixture(scope='module')
def split(): return split_catalog(synthetic_catalog(600, 5, seed=3))


class Lookup:
    "A model that knows the category of a share of the titles, and takes the first one for the others"
    def __init__(self, answers, share=1.): self.answers, self.share = answers, share

    def predict(self, titles):
        rng = np.random.default_rng(0)
        return [self.answers[t] if rng.random() < self.share else min(self.answers.values()) for t in titles]


def fakes(df, log, **shares):
    "Contenders that know a share of all answers; those named bpv are ours"
    answers = dict(zip(df['title'], df['category']))
    def contender(name, share):
        def fit(titles, categories):
            log.append(name)
            return Lookup(answers, share)
        return Contender(name, fit, is_ours=name.startswith('bpv'))
    return [contender(name, share) for name, share in shares.items()]


def by_hand(kind, C, df):
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer='char_wb', ngram_range=(2, 5), sublinear_tf=True)
    features = dict(words=words, characters=characters, both=make_union(words, characters))[kind]
    return make_pipeline(features, LinearSVC(C=C, random_state=0)).fit(df['title'], df['category'])


# The linear SVM


@pytest.mark.parametrize('kind', svm_kinds)
def test_svm_equals_a_pipeline_written_by_hand(split, kind):
    train, test = split
    part = train.sample(min(len(train), 20_000), random_state=0)
    held_out, fit_on = part[:len(part) // 5], part[len(part) // 5:]
    accuracy = {C: (by_hand(kind, C, fit_on).predict(held_out['title']) == held_out['category']).mean() for C in (.3, 1., 3.)}
    C = max(accuracy, key=accuracy.get)
    model, wanted = linear_svm(train['title'], train['category'], kind), by_hand(kind, C, train)
    assert model[-1].C == C == choose_C(train['title'], train['category'], kind)
    assert np.array_equal(model[-1].coef_, wanted[-1].coef_) and model.predict(test['title']).tolist() == wanted.predict(test['title']).tolist()


def test_svm_with_bounded_memory(split):
    train, _ = split
    for kind, parts in dict(words=1, characters=1, both=2).items():
        with pytest.warns(TitleWarning, match='most frequent features'):
            model = linear_svm(train['title'], train['category'], kind, C=1., max_cells=5 * 40)
        assert model[-1].coef_.shape == (5, 40) and model[-1].coef_.size == 5 * 40 // parts * parts
    assert linear_svm(train['title'], train['category'], C=1., max_cells=None)[-1].coef_.shape[1] > 40
    with pytest.raises(ValueError, match="'letters'; it can be 'words', 'characters', 'both'"): linear_svm('ab', 'xy', 'letters')


def test_svm_on_few_and_odd_titles():
    for kind in svm_kinds:
        assert linear_svm(['😀', '🍕'] * 5, ['x', 'y'] * 5, kind).predict(['🍕']).tolist() == ['y']
        assert linear_svm(['tea', 'oil'], ['x', 'y'], kind).predict(['oil']).tolist() == ['y']
    assert linear_svm(['tea', 'oil'] + ['jam'] * 20, ['x', 'y'] + ['z'] * 20)[-1].C in (.3, 1., 3.)


# Scores and intervals


def test_table_has_the_scores_of_scikit_learn(split):
    train, test = split
    df = pd.concat(split)
    compared = compare_models(train, test, fakes(df, [], good=.9, bad=.3), progress=False)
    answers = dict(zip(df['title'], df['category']))
    for name, share in dict(good=.9, bad=.3).items():
        preds = Lookup(answers, share).predict(test['title'])
        assert compared.table.weighted_f1[name] == pytest.approx(f1_score(test['category'], preds, average='weighted', zero_division=0))
    assert compared.table.index.tolist() == ['good', 'bad'] and (compared.table > 0).all(axis=None)
    assert compared.lead is None and compared.verdict() == f'good is best with a weighted F1 of {compared.table.weighted_f1.iloc[0]:.3f}.'


def test_a_category_that_nobody_knows_is_wrong(split):
    train, test = split
    other = Contender('other', lambda *args: Lookup(dict.fromkeys(test['title'], 'no such category')))
    assert compare_models(train, test, [other], progress=False).table.weighted_f1['other'] == 0


def test_bootstrap_against_a_loop_and_a_formula():
    rng = np.random.default_rng(0)
    targs = rng.integers(0, 2, 800)
    preds = np.where(rng.random(800) < .7, targs, 1 - targs)
    scores = bootstrap_f1(targs, preds, 2, n_draws=300, seed=4)
    rng = np.random.default_rng(4)
    for score in scores[:20]:
        i = rng.integers(0, 800, 800)
        assert score == pytest.approx(f1_score(targs[i], preds[i], average='weighted', zero_division=0))
    assert half_interval(scores) == pytest.approx(1.96 * (.7 * .3 / 800)**.5, rel=.2)


def results(targs, **preds):
    return [Result(name, name == 'ours', 1., 1., 1., p.tolist()) for name, p in preds.items()]


def test_difference_is_judged_on_the_same_draws():
    "Two models that differ on few titles: each score is uncertain, and their difference is not"
    rng = np.random.default_rng(0)
    targs = rng.integers(0, 4, 500)
    other = np.where(rng.random(500) < .6, targs, (targs + 1) % 4)
    ours, wrong = other.copy(), np.flatnonzero(other != targs)[:15]
    ours[wrong] = targs[wrong]
    compared = Comparison(results(targs, ours=ours, other=other), targs, 4, 100)
    assert 0 < compared.lead.half < compared.table.half_interval.min() / 2 and compared.lead.is_beyond_chance
    assert 'ours is best' in compared.verdict() and 'ahead of other, the best of the others, more than chance' in compared.verdict()
    same = Comparison(results(targs, ours=other, other=other), targs, 4, 100)
    assert same.lead.difference == same.lead.half == 0 and not same.lead.is_beyond_chance
    behind = Comparison(results(targs, ours=other, other=ours), targs, 4, 100)
    assert behind.lead.difference == -compared.lead.difference and 'chance alone' in same.verdict()
    assert 'other is best' in behind.verdict() and 'ahead of ours, the best of this library' in behind.verdict()


def test_size_of_a_model_is_what_it_saves(split, tmp_path):
    class Saved:
        def save(self, path):
            path.mkdir()
            (path/'a').write_bytes(bytes(2_000_000))
            (path/'b').write_bytes(bytes(500_000))
    assert saved_megabytes(Saved()) == 2.5
    model = linear_svm(*[split[0][name] for name in ('title', 'category')], C=1.)
    pd.to_pickle(model, tmp_path/'m.pickle')
    assert saved_megabytes(model) == pytest.approx((tmp_path/'m.pickle').stat().st_size / 1e6, rel=.01)


# Resuming


def test_a_stopped_comparison_resumes_and_takes_more_contenders(split, tmp_path):
    train, test = split
    df, log = pd.concat(split), []
    a, b, c = fakes(df, log, a=.9, b=.8, c=.7)
    def stop(*args): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compare_models(train, test, [a, Contender('b', stop)], tmp_path, progress=False)
    assert log == ['a'] and [p.name for p in tmp_path.iterdir()] == ['a.json']
    first = compare_models(train, test, [a, b], tmp_path, progress=False)
    second = compare_models(train, test, [c, b, a], tmp_path, progress=False)
    assert log == ['a', 'b', 'c'] and second.table.loc[['a', 'b']].equals(first.table)
    for other in (dict(train=train[1:]), dict(test=test[::-1]), dict(options=dict(threads=9))):
        with pytest.raises(ResumeError, match='results of other titles or options'):
            compare_models(**dict(train=train, test=test, contenders=[a], folder=tmp_path) | other)
    with locked(tmp_path), pytest.raises(FileError, match='another comparison is at work'):
        compare_models(train, test, [a], tmp_path)
    (tmp_path/'b.json').write_text('{"comparison": "')
    with pytest.raises(ResumeError, match='no result of a comparison'): compare_models(train, test, [a], tmp_path)
    assert log == ['a', 'b', 'c']


def test_names_are_different(split):
    a = fakes(pd.concat(split), [], a=1.)
    for contenders in ([], a + a):
        with pytest.raises(ValueError, match='names that differ'): compare_models(*split, contenders)


# The picture


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(.7, .75)), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_labels_cover_neither_each_other_nor_points(points):
    fig, ax = plt.subplots(figsize=(6, 4))
    points = [(10**x, y) for x, y in points]
    ax.scatter(*zip(*points))
    ax.set(xscale='log', xlim=(.1, 20_000), ylim=(.65, .8))
    texts = [f'contender {i}' for i in range(len(points))]
    labels = label_points(ax, points, [.001] * len(points), texts, ['k'] * len(points))
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    boxes = [matplotlib.text.Text.get_window_extent(label, renderer) for label in labels]
    pixels, inside = ax.transData.transform(points), ax.get_window_extent(renderer)
    plt.close(fig)
    assert [label.get_text() for label in labels] == texts
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*pixel) for pixel in pixels)


def test_picture_of_one_contender_and_of_equal_ones(split):
    for shares in (dict(a=1.), dict(a=.5, b=.5, bpv=.5)):
        fig = compare_models(*split, fakes(pd.concat(split), [], **shares), progress=False).plot()
        assert [t.get_text() for t in fig.axes[0].texts] == list(shares) and len(fig.axes) == 3
        plt.close(fig)


# What others use


def test_fasttext():
    pytest.importorskip('fasttext')
    titles = ['olive oil', 'corn oil', 'green tea', 'black tea'] * 30
    model = compare.search_fasttext(titles, ['oil x', 'oil x', 'tea', 'tea'] * 30)
    assert model.predict(['TEA\ngreen', '__label__1 oil', '', '日本'])[:2] == ['tea', 'oil x'] and saved_megabytes(model) > 100


def test_wordllama():
    pytest.importorskip('wordllama')
    root = logging.getLogger()
    before = root.handlers[:], root.level
    model = compare.fit_wordllama(['olive oil', 'corn oil', 'green tea', 'black tea'] * 10, ['oil', 'oil', 'tea', 'tea'] * 10)
    assert model.predict(['White TEA', 'palm oil']).tolist() == ['tea', 'oil'] and 20 < saved_megabytes(model) < 60
    assert (root.handlers, root.level) == before


def test_missing_packages_are_told(monkeypatch):
    for name in ('fasttext', 'wordllama'): monkeypatch.setitem(sys.modules, name, None)
    assert [c.name for c in other_contenders() if not c.is_installed] == ['fastText', 'WordLlama']


# This library


def test_ours_is_trained_as_bpv_train_does(tmp_path, monkeypatch):
    df = synthetic_catalog(500, 4, seed=1)
    df[:400].to_csv(tmp_path/'c.csv', index=False)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe([Member('linear'), Member('ngrams', 2, optimizer='adam', schedule='falling')], final=True)
    for room in (plan, command): monkeypatch.setattr(room, 'choose_recipe', lambda *args: recipe)  # in no time
    threads = torch.get_num_threads()
    try: bpv_train('c.csv', minutes=1, threads=1)
    finally: torch.set_num_threads(threads)
    model = fit_bpv(df['title'][:400], df['category'][:400], TrainOptions(minutes=1))
    wanted = Categorizer.load('model').predict(df['title'][400:], progress=False)['category'].tolist()
    assert model.predict(df['title'][400:]) == wanted
    assert saved_megabytes(model) == pytest.approx((tmp_path/'model'/'weights.safetensors').stat().st_size / 1e6, rel=.05)


def test_choice_of_contenders():
    names = [c.name for c in choose_contenders()]
    assert names == ['SVM words', 'SVM characters', 'SVM both', 'fastText', 'WordLlama', 'bpv 1 min', 'bpv 5 min', 'bpv 30 min']
    assert [c.name for c in choose_contenders('2, .5', 'bpv , FASTTEXT')] == ['fastText', 'bpv 2 min', 'bpv 0.5 min']
    assert [c.name for c in choose_contenders('1', 'svm,')] == names[:3]
    cases = (dict(minutes='1,x'), 'takes numbers'), (dict(minutes=''), 'takes numbers'), (dict(minutes='0'), 'above 0'), (dict(minutes='nan'), 'above 0'), (
        dict(only='svm,BM25'), 'bm25: no such contender; there are SVM words'),
    for options, message in cases:
        with pytest.raises(TitleError, match=message): choose_contenders(**options)
    assert share_to_judge(4) == .25 and share_to_judge(10**6) == .02 and share_to_judge(10, .5) == .5
    for test in (0, -1, .6, 6):
        with pytest.raises(TitleError, match='at most half'): share_to_judge(10, test)


# The command


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    "A catalog in the working folder, contenders that cost nothing, and the list of those that were trained"
    df, log = synthetic_catalog(400, 4, seed=2), []
    df.to_csv(tmp_path/'c.csv', index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, 'other_contenders', lambda: fakes(df, log, svm=.8, other=.6) + [
        Contender('absent', None, module='no_such_module', package='no-such-package')])
    answers = dict(zip(df['title'], df['category']))
    def fit_fake(titles, categories, options):
        log.append(options.minutes)
        return Lookup(answers, .9)
    monkeypatch.setattr(command, 'fit_bpv', fit_fake)
    threads = torch.get_num_threads()
    yield log
    torch.set_num_threads(threads)


def test_the_command_writes_table_and_picture_and_resumes(catalog, capsys):
    bpv_compare('c.csv', out='x', minutes='1,5', threads=1)
    out = capsys.readouterr().out
    assert catalog == ['svm', 'other', 1., 5.] and 'absent is left out, it is not installed: pip install no-such-package' in out
    assert '4 contenders on 1 thread: 300 labelled titles, 100 test titles' in out and 'svm trains …\nsvm: weighted F1 0.' in out
    report, table = json.loads(open('x/compare.json').read()), pd.read_csv('x/compare.csv', index_col=0)
    assert report['verdict'] in out and [r['contender'] for r in report['results']] == table.index.tolist()
    assert table.columns.tolist() == ['weighted_f1', 'half_interval', 'train_seconds', 'titles_per_second', 'megabytes']
    assert report['lead']['ours'] == 'bpv 1 min' and report['lead']['other'] == 'svm' and report['test_titles'] == 100
    height, width, _ = plt.imread('x/compare.png').shape
    assert 900 <= width <= 1_400 and 350 <= height <= 700
    bpv_compare('c.csv', out='x', minutes='1,5,30', threads=1)
    assert catalog == ['svm', 'other', 1., 5., 30.] and capsys.readouterr().out.count('kept from an earlier run') == 4
    again = pd.read_csv('x/compare.csv', index_col=0)
    assert again.loc[table.index].equals(table)
    bpv_compare('c.csv', out='x', minutes='1', only='svm', threads=1, test=50, fresh=True)
    assert catalog[5:] == ['svm'] and json.loads(open('x/compare.json').read())['lead'] is None


def test_copies_of_a_title_stay_together(catalog, monkeypatch):
    df = synthetic_catalog(200, 3, seed=2).drop_duplicates('title')
    pd.concat([df, df.assign(title=df['title'].str.upper() + '!')]).to_csv('c.csv', index=False)
    seen = []
    def compare_nothing(train, test, *args, **kwargs): seen.append((train, test)); raise TitleError('enough')
    monkeypatch.setattr(command, 'compare_models', compare_nothing)
    with pytest.raises(SystemExit): bpv_compare('c.csv', threads=1)
    train, test = ({t.lower().strip('!') for t in part['title']} for part in seen[0])
    assert train and test and not train & test and len(seen[0][1]) == pytest.approx(len(df) / 2, abs=4)


def test_titles_of_other_groups_judge_and_ours_is_told(catalog, monkeypatch, capsys):
    df, seen = synthetic_catalog(400, 4, seed=3), []
    df['shop'] = [f'shop {i % 16}' for i in range(len(df))]
    df.to_csv('c.csv', index=False)
    def note(train, test, contenders, *args): seen.append((train, test, contenders)); raise TitleError('enough')
    monkeypatch.setattr(command, 'compare_models', lambda *args, fresh: note(*args))
    with pytest.raises(SystemExit): bpv_compare('c.csv', group='shop', only='svm,bpv', minutes='1', threads=1)
    train, test, (svm, ours) = seen[0]
    assert len(test) == pytest.approx(100, abs=15) and not set(train['shop']) & set(test['shop'])
    assert ours.fit.keywords['groups'] == train['shop'].tolist() and 'groups' not in getattr(svm.fit, 'keywords', {})
    with pytest.raises(SystemExit) as end: bpv_compare('c.csv', group='brand', threads=1)
    assert "no column 'brand'" in end.value.code


def test_all_read_the_text_and_ours_as_a_field(catalog, monkeypatch):
    df, seen = synthetic_catalog(400, 4, seed=3), []
    df['title'], df['word'] = 'thing ' + df.index.astype(str), df['category'].str.lower() + ' indeed'
    df.to_csv('c.csv', index=False)
    def note(train, test, contenders, *args): seen.append((train, test)); raise TitleError('enough')
    monkeypatch.setattr(command, 'compare_models', lambda *args, fresh: note(*args))
    with pytest.raises(SystemExit): bpv_compare('c.csv', text='word:90', only='svm,bpv', minutes='1', threads=1)
    train, test = seen[0]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(command, 'choose_recipe', lambda *args: Recipe([Member('linear')]))
        ours = fit_bpv(train['title'], train['category'], TrainOptions(text='word:90'))
    assert ours.cat.fields[0].name == 'word' and ours.cat.fields[0].max_len == 90
    for model in (ours, linear_svm(train['title'], train['category'], C=1.)):
        assert (np.array(model.predict(test['title'].tolist())) == test['category']).mean() > .9


def test_groups_decide_which_titles_are_held_out():
    df, seen = synthetic_catalog(400, 4, seed=3), []
    groups = [f'shop {i % 16}' for i in range(len(df))]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(command, 'choose_recipe', lambda dls, *args: seen.append(dls) or Recipe([Member('linear')]))
        fit_bpv(df['title'], df['category'], TrainOptions(group='shop'), groups)
    assert not set(seen[0].train_ds.groups) & set(seen[0].valid_ds.groups)


def test_mistakes_end_in_one_line(catalog, capsys):
    pd.DataFrame(dict(title=['a', 'b', 'c', 'd'], category=['x'] * 4)).to_csv('one.csv', index=False)
    pd.DataFrame(dict(title=['a', None], category=['x', 'y'])).to_csv('bad.csv', index=False)
    cases = (('none.csv', {}, 'none.csv: '), ('c.csv', dict(title='name'), "no column 'name'"), ('one.csv', {}, 'two categories at least'),
             ('bad.csv', {}, '--drop'), ('c.csv', dict(minutes='x'), '--minutes x'), ('c.csv', dict(only='bm25'), '--only bm25'),
             ('c.csv', dict(test=300), '--test 300 of 400'), ('c.csv', dict(only='absent'), 'no contender is left'))
    for path, options, message in cases:
        with pytest.raises(SystemExit) as end: bpv_compare(path, out='x', threads=1, **options)
        assert message in end.value.code and len(end.value.code.splitlines()) == 1, end.value.code
    assert not catalog
    bpv_compare('c.csv', out='x', only='svm', threads=1)
    with pytest.raises(SystemExit) as end: bpv_compare('c.csv', out='x', only='svm', seed=1, threads=1)
    assert end.value.code == 'bpv_compare: x/results: the folder holds results of other titles or options (--fresh starts anew)'


def test_an_interrupt_keeps_what_is_done(catalog, monkeypatch, capsys):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(SystemExit) as end:
        m.setattr(command, 'fit_bpv', stop)
        bpv_compare('c.csv', out='x', minutes='1', threads=1)
    assert end.value.code == 130 and 'the same command keeps the contenders that are done' in capsys.readouterr().err
    bpv_compare('c.csv', out='x', minutes='1', threads=1)
    assert catalog == ['svm', 'other', 1.]
