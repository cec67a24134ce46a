"The linear member, the training on all titles, and rules that are fitted on the titles to be labelled."
import json
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import to_builtins
from safetensors.torch import load_file, save_file

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.errors import CategorizerError
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.titles import CharVocab, encode_titles
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.learner import linear_learner
from bpv_fastai.models import average
from bpv_fastai.models.inference import TitleBatches
from bpv_fastai.models.linear import NgramLinear
from bpv_fastai.models.ngrams import fold_characters
from bpv_fastai.train import linear
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import Member, Recipe
from bpv_fastai.use import predict
from bpv_fastai.use.format import description_checksum, note_file


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    path = tmp_path_factory.mktemp('linear')
    return TitleDataLoaders.from_df(synthetic_catalog(900, 6, seed=3), bs=32, path=path, verbose=False)


@pytest.fixture(scope='module')
def fitted(dls):
    learn = linear_learner(dls)
    with learn.quiet(): learn.fit()
    return learn


bags = dict(optimizer='adam', schedule='falling')


def train(dls, members=(Member('linear'), Member('ngrams', 3, **bags)), **kwargs):
    return Ensemble.train(dls, Recipe(list(members), final=True), **dict(n_jobs=1, progress=False) | kwargs)


@given(st.lists(st.text(alphabet='abAB1 -/日', max_size=12), min_size=1, max_size=6), st.integers(1, 9),
       st.integers(0, 2**31), st.booleans())
@settings(max_examples=60, deadline=None)
def test_against_a_loop_over_ngrams(titles, k, seed, counted):
    vocab = CharVocab('abAB1 -/日')
    net = NgramLinear(len(vocab), 5, *fold_characters(vocab.chars), n_rows=2**8, k=k, counted=counted).eval()
    rng = np.random.default_rng(seed)
    net.category_weights.copy_(torch.tensor(rng.normal(size=net.category_weights.shape)))
    net.category_ids.copy_(torch.tensor(rng.permuted(np.tile(np.arange(5), (2**8, 1)), axis=1)[:, :k]))
    net.weights[1:] = torch.tensor(rng.uniform(1, 9, 2**8 - 1))
    (x,), = TitleBatches(encode_titles(titles, vocab), bs=99)
    wanted = torch.zeros(len(titles), 5)
    for block, log in zip(net.rows(x, repeats=True), (math.log if counted else lambda n: 0, lambda n: 0)):  # a word counts once
        for i, rows in enumerate(block.tolist()):
            scales = {row: float(net.weights[row]) * (1 + log(n)) for row, n in Counter(rows).items() if row}
            length = sum(s**2 for s in scales.values())**.5
            for row, scale in scales.items():
                for c, weight in zip(net.category_ids[row], net.category_weights[row].float()): wanted[i, c] += scale / length * weight
    assert torch.allclose(net(x), wanted, atol=1e-4)


@pytest.mark.parametrize('n_categories', [2, 3, 70])
def test_groups_of_categories_change_little(n_categories, monkeypatch):
    "Also with two categories, of which the solver fits one, and with one in its group"
    df = synthetic_catalog(600, n_categories, seed=1)
    dls = TitleDataLoaders.from_df(df, bs=64, verbose=False)
    logits = []
    for size in (1, 32, 1_000):
        monkeypatch.setattr(linear, '_group_size', size)
        learn, reports = linear_learner(dls, n_rows=2**12, k=99, C=1.), []
        with learn.quiet(): learn.fit(report=reports.append)
        assert reports[0] == 0 and reports[-1] < 1 and len(reports) == max(-(-len(set(df.category)) // size), min(4, len(set(df.category))))
        with torch.no_grad(): logits.append(learn.model(dls.valid.one_batch()[0]))
    for other in logits[1:]: assert (logits[0] - other).abs().max() < .5 and logits[0].abs().max() > 3


def test_a_category_without_titles_is_never_first(dls):
    vocab = type(dls.vocab)([*dls.vocab, 'another'])
    more = TitleDataLoaders.from_df(synthetic_catalog(900, 6, seed=3), bs=32, vocab=vocab, verbose=False)
    learn = linear_learner(more)
    with learn.quiet(): learn.fit()
    assert 'another' not in learn.decide([more.valid_ds[i][0] for i in range(200)], rule='best')['category'].tolist()


def test_it_is_saved_loaded_and_exported(dls, fitted, tmp_path):
    titles = [dls.valid_ds[i][0] for i in range(100)] + ['', '!!! -']
    cat = Categorizer.from_learner(fitted)
    wanted = cat.predict(titles, top_k=3)
    assert Categorizer.load(cat.save(tmp_path/'model')).predict(titles, top_k=3).equals(wanted)
    assert {t.dtype for t in load_file(tmp_path/'model'/'weights.safetensors').values()} == {torch.float32, torch.float16, torch.int16}
    pytest.importorskip('onnx', reason='the extra onnx')
    from bpv_fastai.categorizer import OnnxCategorizer
    cat.to_onnx(tmp_path/'onnx')
    found = OnnxCategorizer(tmp_path/'onnx').predict(titles, top_k=3)
    assert found['category'].tolist() == wanted['category'].tolist() and np.allclose(found['confidence'], wanted['confidence'], atol=1e-4, equal_nan=True)


def test_a_file_that_names_categories_that_do_not_exist_is_refused(fitted, tmp_path):
    Categorizer.from_learner(fitted).save(tmp_path)
    weights, path = tmp_path/'weights.safetensors', tmp_path/'categorizer.json'
    tensors = load_file(weights)
    tensors['0.category_ids'][7, 0] = 6
    save_file(tensors, weights)
    description = json.loads(path.read_text())
    description['weights'] = to_builtins(note_file(weights))
    path.write_text(json.dumps(description | dict(checksum=description_checksum(description))))
    with pytest.raises(CategorizerError, match='names categories that do not exist'): Categorizer.load(tmp_path)


def keep_all(log_probs, *_): return list(range(len(log_probs)))


@pytest.mark.parametrize('n_jobs', [1, 2])
def test_final_members_are_those_of_all_titles(dls, n_jobs, monkeypatch):
    monkeypatch.setattr(average, 'members_ahead', keep_all)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: judged = train(dls, n_jobs=n_jobs)
    finally: torch.set_num_threads(n_threads)
    alone = linear_learner(dls.with_all_titles(), C=judged.curves[0].scores['C'])
    with alone.quiet(): alone.fit()
    assert torch.equal(judged.final.model.members[0].category_weights, alone.model.category_weights)
    assert not torch.equal(judged.model.members[0].category_weights, alone.model.category_weights)
    assert judged.final.model.shares == judged.model.shares and judged.final.decider.is_fitted
    assert judged.final.reports['member'].tolist() == ['linear', 'n-grams'] and 'weighted_f1' not in judged.final.reports


@pytest.mark.parametrize('options', [(1., 1e-4), (1e-4, 1.)])
def test_the_regularization_is_chosen_on_validation_titles(dls, options, monkeypatch):
    monkeypatch.setattr(linear, 'C_OPTIONS', options)
    learn, given = linear_learner(dls), linear_learner(dls, C=1.)
    for each in (learn, given):
        with each.quiet(): each.fit()
    assert learn.C == 1 and torch.equal(learn.model.category_weights, given.model.category_weights)


def test_members_without_a_share_are_not_trained_again(dls, monkeypatch):
    "And the others are, with their own seeds and what was chosen on titles held out"
    monkeypatch.setattr(average, 'members_ahead', lambda *args: keep_all(*args)[1:])
    judged = train(dls, [Member('bpv', 1, kwargs=dict(nh=8)), Member('linear'), Member('ngrams', 3, **bags)], seed=4)
    assert judged.model.shares[0] == 0 and judged.final.reports['member'].tolist() == ['linear', 'n-grams']
    assert judged.final.reports['seed'].tolist() == [5, 6] and judged.final.model.shares == judged.model.shares[1:]
    assert judged.final.reports['C'][0] == judged.reports['C'][1]
    titles = [dls.valid_ds[i][0] for i in range(50)]
    with judged.final.quiet(): assert len(judged.final.decide(titles)) == 50


def test_rows_that_cannot_judge_train_the_final_members_also_side_by_side():
    df = synthetic_catalog(900, 6, seed=3)
    train_part, valid, other = df[:500], df[500:700], df[700:]
    dls = TitleDataLoaders.from_split(train_part, valid, other=other, bs=32)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: finals = [train(dls, n_jobs=n_jobs).final for n_jobs in (1, 2)]
    finally: torch.set_num_threads(n_threads)
    assert len(finals[0].dls.train_ds) == 900
    first, second = (final.model.state_dict() for final in finals)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_validation_titles_some_are_held_out():
    df = synthetic_catalog(900, 6, seed=3)
    dls = TitleDataLoaders.from_df(df, valid_pct=0, bs=32, verbose=False)
    judged = train(dls)
    assert len(judged.dls.valid_ds) == pytest.approx(225, abs=3) and len(judged.final.dls.train_ds) == len(dls.train_ds)
    assert judged.final.decider.is_fitted


def test_members_that_are_left_out_are_not_saved(dls, tmp_path):
    judged = train(dls)
    judged.model.shares = [1., 0.]
    judged.f1_calibration.weigh = False
    with judged.quiet(): judged.f1_calibration.calibrate()
    cat = Categorizer.load(Categorizer.from_learner(judged).save(tmp_path))
    titles = [dls.valid_ds[i][0] for i in range(50)]
    assert len(cat.ensemble.members) == 1
    with judged.quiet(): assert cat.predict(titles)['category'].tolist() == judged.decide(titles)['category'].tolist()


def test_a_rule_for_the_titles_of_a_file(fitted, tmp_path):
    "As for a list of them; whatever is left of a stopped run; not where there are fewer than the rule was fitted on"
    titles = synthetic_catalog(1_200, 6, seed=4)['title'].tolist()
    cat = Categorizer.from_learner(fitted)
    assert cat.decider.n_titles == len(fitted.dls.valid_ds)
    here, saved = cat.predict(titles), cat.predict(titles, adapt=False)
    assert not here['category'].equals(saved['category'])
    adapted = cat.decider.adapted(predict.title_top_probs(cat.ensemble, encode_titles(titles, cat.char_vocab), cat.decider.k))
    rule, cat.decider.rule = cat.decider.rule, adapted.rule
    assert cat.predict(titles, adapt=False)['category'].tolist() == here['category'].tolist()
    cat.decider.rule = rule
    pd.DataFrame(dict(title=titles)).to_csv(tmp_path/'t.csv', index=False)
    cat.chunk_size = 500
    cat.predict_file(tmp_path/'t.csv', tmp_path/'o.csv', progress=False)
    assert pd.read_csv(tmp_path/'o.csv')['category'].tolist() == here['category'].tolist()
    assert cat.predict(titles[:200]).equals(cat.predict(titles[:200], adapt=False))
    assert not cat.predict(titles[:200], adapt=True)['category'].equals(cat.predict(titles[:200], adapt=False)['category'])


def test_a_list_that_is_adapted_to_passes_the_networks_once(fitted, monkeypatch):
    titles, n_seen = synthetic_catalog(1_200, 6, seed=4)['title'].tolist(), []
    cat, top_probs = Categorizer.from_learner(fitted), predict.title_top_probs
    def count(net, encoded, *args, **kwargs):
        n_seen.append(len(encoded))
        return top_probs(net, encoded, *args, **kwargs)
    monkeypatch.setattr(predict, 'title_top_probs', count)
    labelled = cat.predict(titles, top_k=3)
    assert n_seen == [1_200] and labelled['category'].tolist() == cat.predict(titles)['category'].tolist()
    cat.chunk_size = 500  # parts of the list are other titles than the list
    in_parts = cat.predict(titles, top_k=3)
    assert n_seen[2:] == [1_200, 500, 500, 200]
    assert in_parts['category'].equals(labelled['category']) and np.allclose(in_parts['confidence'], labelled['confidence'])


def test_titles_are_drawn_from_all_of_a_file(tmp_path):
    pd.DataFrame(dict(title=[f'{i // 100}' for i in range(120_000)])).to_parquet(tmp_path/'t.parquet')
    drawn, n = predict.sample_file(tmp_path/'t.parquet', 'title', 12_000)
    assert n == 120_000 and len(drawn) == 12_000 and 100 < np.std([int(t) for t in drawn]) and len(set(drawn)) > 1_190
