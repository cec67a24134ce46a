"Columns of text beside the title: n-grams by field, catalogs that are learned from them, and models that read them."
import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpv_fastai.categorizer import Categorizer, OnnxCategorizer
from bpv_fastai.data.catalog import catalog_report, read_catalog, title_keys
from bpv_fastai.data.errors import CatalogError, CategorizerError, TitleWarning
from bpv_fastai.data.fields import SEPARATOR, TextField, cut_fields, join_fields, text_fields
from bpv_fastai.data.titles import CharVocab, encode_titles
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.interpret import TitleInterpretation
from bpv_fastai.learner import bpv_learner, linear_learner, ngram_learner
from bpv_fastai.models.linear import NgramLinear
from bpv_fastai.models.ngrams import NgramBag, fold_characters, ngram_rows
from bpv_fastai.train.loaders import TitleDataLoaders
from commands import call

brands = ['Acme', 'Bolt', 'Corex', 'Dyna']


def by_brand(n=400, seed=0):
    "A catalog in which only the brand tells the category"
    rng = np.random.default_rng(seed)
    words = ['red', 'cup', 'big', 'box', 'new', 'pen', 'old', 'hat', 'tin', 'map']
    rows = [(f'{" ".join(rng.choice(words, 3))} {i}', f'makes {brand}', brand, ' '.join(rng.choice(words, 12)))
            for i, brand in enumerate(rng.choice(brands, n))]
    return pd.DataFrame(rows, columns=['title', 'category', 'brand', 'description'])


def loaders(df, text_cols=('brand', TextField('description', 30)), **kwargs):
    return TitleDataLoaders.from_df(df, text_cols=text_cols, **dict(bs=32, verbose=False, device='cpu') | kwargs)


# Joining and cutting

cells = st.text(st.sampled_from('ab é\x1f'), max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells, cells), max_size=8), st.tuples(*[st.integers(1, 5)] * 3))
def test_fields_are_joined_and_cut_cell_by_cell(rows, limits):
    df = pd.DataFrame(rows, columns=['title', 'a', 'b'], dtype=object)
    fields = TextField('a', limits[1]), TextField('b', limits[2])
    joined = join_fields(df, fields)
    texts = [text for text in joined if text.strip()]
    rows = [row for row in rows if row[0].strip()]
    expected = [[cell.replace(SEPARATOR, ' ')[:n] for cell, n in zip(row, limits)] for row in rows]
    assert cut_fields(texts, limits[0], fields) == ([SEPARATOR.join(row) for row in expected],
                                                    sum(len(row[0]) > limits[0] for row in rows))
    vocab = CharVocab.fit(texts, 1, always=SEPARATOR)
    encoded = encode_titles(texts, vocab, limits[0], False, fields)
    assert encoded.decode() == [SEPARATOR.join(row) for row in expected] and (encoded.lengths <= sum(limits) + 4).all()


def test_a_plain_title_has_empty_fields_and_more_are_one():
    fields = text_fields('a,b')
    assert cut_fields(['Tea', 'Tea\x1fX', 'Tea\x1fX\x1fY\x1fZ'], 9, fields)[0] == ['Tea\x1f\x1f', 'Tea\x1fX\x1f', 'Tea\x1fX\x1fY Z']


def test_names_and_limits():
    assert text_fields('a:3, b') == (TextField('a', 3), TextField('b')) and str(TextField('a', 3)) == 'a:3'
    assert text_fields(text_fields('a')) == text_fields(['a'])
    for wrong in ('a,a', 'a,,b', 'a:0', '', [3], ['']):
        with pytest.raises(CatalogError): text_fields(wrong)


# N-grams by field

def by_field(f, x, separator, n_rows, n_letters, segment):
    "Rows of the pieces and words of one segment of one title, by slicing a list"
    starts = [-1, *(i for i, token in enumerate(x) if token == separator), len(x)]
    if segment + 1 >= len(starts): return [], []
    own = [0, *f[starts[segment] + 1:starts[segment + 1]], 0]
    alone = ngram_rows(torch.tensor([own]), n_rows, n_letters=n_letters, segment=segment)
    return [sorted(set(r[r > 0].tolist())) for r in alone]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.sampled_from('abC -/\x1f'), max_size=30), min_size=1, max_size=5))
def test_ngrams_of_a_field_are_those_of_its_text_alone(titles):
    vocab = CharVocab('abC -/\x1f')
    fold, n_letters = fold_characters(vocab.chars)
    separator, fields = 4 + vocab.chars.index(SEPARATOR), text_fields('one,two')
    encoded = encode_titles(titles, vocab, 100, False, fields)
    x = torch.nn.utils.rnn.pad_sequence([torch.tensor(t.astype('int64')) for t in encoded], batch_first=True)
    net = NgramBag(len(vocab), 3, fold, n_letters, 2**12, 4, separator=separator, n_segments=3)
    blocks = net.rows(x)
    assert len(blocks) == 6
    for k in range(3):
        for block, expected in zip(blocks[2 * k:2 * k + 2], zip(*(
                by_field([fold[t] for t in row], row, separator, 2**12, n_letters, k) for row in encoded))):
            assert [sorted(r[r > 0].tolist()) for r in block] == list(expected)
    scaled = net.scaled_rows(x)
    for kind in 0, 1:  # pieces, words: a new net weighs all n-grams alike, so a segment counts by their number
        sizes = [(rows > 0).sum(1).float() for rows, _ in scaled[kind::2]]
        sizes = [torch.where(sizes[0] > 0, torch.minimum(size, sizes[0]), size) for size in sizes]  # at most the title's
        for size, (_, scales) in zip(sizes, scaled[kind::2]):
            assert torch.allclose(scales.square().sum(1) * sum(sizes), size, atol=1e-3)
    first = NgramBag(len(vocab), 3, fold, n_letters, 2**12, 4).rows(
        torch.nn.utils.rnn.pad_sequence([torch.tensor(encode_titles([t.split(SEPARATOR)[0]], vocab)[0].astype('int64'))
                                         for t in titles], batch_first=True))
    for block, plain in zip(blocks, first):  # the title's own n-grams are those of a model without fields
        assert [r[r > 0].tolist() for r in block] == [r[r > 0].tolist() for r in plain]


def test_the_same_word_has_other_rows_in_other_fields():
    f = torch.tensor([[0, 1, 2, 3, 0]])
    rows = [set(torch.cat(ngram_rows(f, 2**18, segment=k), 1).flatten().tolist()) - {0} for k in range(5)]
    assert all(not a & b for i, a in enumerate(rows) for b in rows[:i]) and len({len(r) for r in rows}) == 1
    vocab = CharVocab('ab\x1f')
    with pytest.raises(ValueError, match='segments'): NgramLinear(len(vocab), 2, *fold_characters(vocab.chars), separator=6)
    with pytest.raises(ValueError, match='white space'):
        NgramLinear(len(vocab), 2, *fold_characters(vocab.chars), separator=4, n_segments=2)


# Catalogs

def test_read_catalog_with_text(tmp_path):
    df = pd.DataFrame(dict(title=['Tea', 'Tea', 'tea!', 'Oil'], category=list('aabb'), brand=['X', 'x', None, 31], note=['', 'b', 'b', 'c']))
    read = read_catalog(df, text_cols=['brand', 'note'], verbose=False)
    assert read['brand'].tolist() == ['X', 'x', '', '31'] and read.columns.tolist() == ['title', 'category', 'brand', 'note']
    assert (catalog_report(read).copies, catalog_report(read).repeated) == (0, 0)
    assert catalog_report(read_catalog(df, text_cols=['brand'], verbose=False)).copies == 2  # all fields are equal
    for name in 'foods.tsv', 'foods.csv', 'foods.parquet':
        path = tmp_path/name
        if name.endswith('tsv'): df.to_csv(path, sep='\t', index=False, quoting=3)
        elif name.endswith('csv'): df.to_csv(path, index=False)
        else: df.astype('str').where(df.notna(), None).to_parquet(path)
        again = read_catalog(path, text_cols='brand,note', group_col='brand', verbose=False)
        assert again[['brand', 'note']].values.tolist() == read[['brand', 'note']].values.tolist(), name
        with pytest.raises(CatalogError, match=f"{name}: no column 'maker'.*Add it, or correct its name"): read_catalog(path, text_cols='maker')
        with pytest.raises(CatalogError, match="no column 'name', 'maker'.*Name yours"): read_catalog(path, 'name', text_cols='maker')
    with pytest.raises(CatalogError, match="row 2, column 'note': a list"): read_catalog(df.assign(note=['', '', [1], '']), text_cols='note')
    bad = read_catalog(df.assign(note=['', '', 'a\0', '']), text_cols='note', on_bad='drop', verbose=False)
    assert len(bad) == 3 and catalog_report(bad).bad_rows.column.tolist() == ['note']
    with pytest.raises(CatalogError, match='read by name'): read_catalog(tmp_path/'foods.tsv', 0, 1, text_cols='note')
    with pytest.raises(CatalogError, match='named twice'): read_catalog(df, text_cols='title')


def test_copies_have_all_fields_equal():
    texts = ['ab\x1fc', 'AB\x1fc!', 'a\x1fbc', 'ab c']
    keys = title_keys(texts)
    assert keys[0] == keys[1] and len(set(keys)) == 3


# Learning

@pytest.fixture(scope='module')
def learned():
    dls = loaders(by_brand(), min_freq=1)
    linear, bag = linear_learner(dls), ngram_learner(dls, n_rows=2**12, dim=16)
    with linear.quiet(): linear.fit()
    with bag.quiet(): bag.fit_flat_cos(12, pct_start=0)
    return linear, bag


def accuracy_of(learn, df, **kwargs): return (learn.decide(df, **kwargs)['category'] == df['category'].to_numpy()).mean()


def test_what_only_the_brand_tells_is_learned_from_the_brand(learned):
    new = by_brand(100, seed=1)
    assert all(accuracy_of(learn, new) > .95 for learn in learned)
    assert all(accuracy_of(learn, new.assign(brand='')) < .6 for learn in learned)
    plain = linear_learner(loaders(by_brand(), text_cols=(), min_freq=1))
    with plain.quiet(): plain.fit()
    assert accuracy_of(plain, new) < .5 and 'separator' not in plain.model.config
    network = bpv_learner(loaders(by_brand(), min_freq=1, max_len=20), nh=8)
    assert len(network.decide(new, rule='best')) == 100


def test_fastai_habits(learned, capsys):
    learn, df = learned[0], by_brand(30, seed=2)
    dls = learn.dls
    assert dls.train_ds[0][0].count(SEPARATOR) == 2 and dls.char_vocab.chars.count(SEPARATOR) == 1
    assert dls.valid.show_batch(show=False)['title'].str.count(r' \| ').eq(2).all()
    with learn.no_bar():
        learn.show_results()
        category, _, probs = learn.predict('red cup')
    assert ' | ' in capsys.readouterr().out and category in dls.vocab and probs.shape == (4,)
    top = TitleInterpretation.from_learner(learn).plot_top_losses(show=False)
    assert top['title'].str.count(r' \| ').eq(2).all()
    assert dls.test_dl(df, with_labels=True).dataset.titles.fields == dls.train_ds.titles.fields
    assert learn.decide(df)['title'].tolist() == df['title'].tolist() and learn.decide(df['title'])['title'].tolist() == df['title'].tolist()
    with pytest.raises(CatalogError, match="no column 'brand'.*Add it"): learn.decide(df.drop(columns='brand'))
    with pytest.raises(CatalogError, match="row 1, column 'brand'"): learn.decide(df.assign(brand=['a', ['b'], *'c' * 28]))
    halves = dls.with_held_out(.5)
    assert halves.train_ds.titles.fields == dls.train_ds.titles.fields == dls.with_all_titles().train_ds.titles.fields
    assert pickle.loads(pickle.dumps(dls.train_ds)).titles.fields == dls.train_ds.titles.fields
    with pytest.raises(ValueError, match='separator'): loaders(by_brand(), char_vocab=CharVocab('abc'))


def test_saved_loaded_and_onnx_are_equal(learned, tmp_path):
    pytest.importorskip('onnxruntime')
    together = Ensemble(learned, progress=False)
    cat, df = Categorizer.from_learner(together), by_brand(60, seed=3)
    assert cat.fields == text_fields('brand,description:30') and 'reads title, brand, description' in repr(cat)
    cat.save(tmp_path/'model')
    contents = json.loads((tmp_path/'model'/'categorizer.json').read_text())
    assert contents['version'] == 3 and contents['fields'] == [dict(name='brand', max_len=200), dict(name='description', max_len=30)]
    loaded = Categorizer.load(tmp_path/'model')
    cat.to_onnx(tmp_path/'onnx')
    expected = cat.predict(df, top_k=2)
    assert expected['title'].tolist() == df['title'].tolist()
    assert (expected['category_1'] == df['category']).mean() > .95
    for other in (loaded, OnnxCategorizer(tmp_path/'onnx')):
        assert other.fields == cat.fields
        answers = other.predict(df, top_k=2)
        assert answers['category_1'].tolist() == expected['category_1'].tolist()
        assert np.allclose(answers['probability_1'], expected['probability_1'], atol=1e-4)
    decided = together.decide(df, top_k=2)
    assert np.allclose(decided['probability_1'], expected['probability_1'], atol=1e-5)

    plain = cat.predict(df['title'].tolist() + [None, ''])  # fields are empty
    assert plain['title'].tolist() == [*df['title'], None, ''] and plain['reason'].tolist()[-2:] == ['missing', 'empty']
    assert plain['category'][:60].tolist() == cat.predict(df.assign(brand=None, description=''))['category'].tolist()
    with pytest.raises(CatalogError, match="no column 'brand', 'description'; it has 'title'"): cat.predict(df[['title']])
    with pytest.warns(TitleWarning, match='1 title with more than 512'): cat.predict(['x' * 600])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cat.predict(df.assign(description='x' * 600))  # its limit is no surprise


def test_a_model_without_fields_is_written_as_before(learned, tmp_path):
    dls = loaders(by_brand(), text_cols=(), min_freq=1)
    learn = linear_learner(dls)
    with learn.quiet(): learn.fit()
    Categorizer.from_learner(learn).save(tmp_path/'model')
    contents = json.loads((tmp_path/'model'/'categorizer.json').read_text())
    assert 'fields' not in contents
    assert not {'separator', 'n_segments'} & set(contents['networks'][0])


def test_a_description_that_does_not_fit_is_refused(learned, tmp_path):
    cat = Categorizer.from_learner(learned[0])
    parts = {n: getattr(cat, n) for n in ('ensemble', 'char_vocab', 'vocab', 'decider', 'max_len', 'report')}
    for fields in ((), text_fields('brand'), text_fields('a,b,c')):
        with pytest.raises(CategorizerError, match='do not go together'): Categorizer(**parts, fields=fields).save(tmp_path/'model')
    with pytest.raises(CategorizerError, match='named twice'): Categorizer(**parts, fields=(TextField('a'),) * 2).save(tmp_path/'model')
    assert not (tmp_path/'model').exists() or not list((tmp_path/'model').glob('*.json'))


# Files and commands

def test_files_with_fields(learned, tmp_path):
    cat, df = Categorizer.from_learner(learned[0]), by_brand(70, seed=4)
    cat.chunk_size = 16
    expected = cat.predict(df)['category'].tolist()
    df.drop(columns='category').to_csv(tmp_path/'titles.csv', index=False)
    df[['description', 'title', 'brand']].to_parquet(tmp_path/'titles.parquet')
    for name in 'titles.csv', 'titles.parquet':
        assert cat.predict_file(tmp_path/name, tmp_path/'out.csv', progress=False) == 70
        answers = pd.read_csv(tmp_path/'out.csv')
        assert answers['category'].tolist() == expected and answers['title'].tolist() == df['title'].tolist()
    df[['title', 'brand']].to_csv(tmp_path/'some.csv', index=False)
    with pytest.raises(CatalogError, match="some.csv: no column 'description'.*Add it"): cat.predict_file(tmp_path/'some.csv', tmp_path/'no.csv')
    (tmp_path/'odd.csv').write_text('title,brand,description\nred cup,Bolt,old\nbig\n,Bolt,old\nred cup,,\n')
    with pytest.warns(UserWarning, match='no category'): cat.predict_file(tmp_path/'odd.csv', tmp_path/'out.csv', progress=False)
    assert pd.read_csv(tmp_path/'out.csv')['reason'].fillna('').tolist() == ['', '1 column instead of 3', 'empty', '']
    assert not (tmp_path/'no.csv').exists()


def test_commands_with_fields(tmp_path):
    df = by_brand(360)
    df[:300].to_csv(tmp_path/'catalog.csv', index=False)
    df[300:].to_csv(tmp_path/'labelled.csv', index=False)
    df[300:].drop(columns='category').to_csv(tmp_path/'titles.tsv', sep='\t', index=False, quoting=3)
    ran = call('bpv_train', 'catalog.csv', '--text', 'brand:20,description', '--pairs', 0, '--nh', 8, '--epochs', 1, '--nofinal', cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path/'model'/'report.json').read_text())
    assert report['fields'] == [dict(name='brand', max_len=20), dict(name='description', max_len=200)] and report['f1'] > .9
    ran = call('bpv_evaluate', 'model', 'labelled.csv', cwd=tmp_path)
    assert ran.returncode == 0 and pd.read_csv(tmp_path/'model'/'evaluation'/'by_category.csv')['f1'].mean() > .9, ran.stderr
    ran = call('bpv_predict', 'model', 'titles.tsv', cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    answers = [line.split('\t') for line in (tmp_path/'predictions.tsv').read_text().splitlines()]
    assert [a[0] for a in answers] == df['title'][300:].tolist()
    assert np.mean([a[1] == c for a, c in zip(answers, df['category'][300:])]) > .9
    ran = call('bpv_evaluate', 'model', 'catalog.csv', '--category', 'brand', '--title', 'category', cwd=tmp_path)
    assert ran.returncode == 1 and 'named twice' in ran.stderr
    for wrong, problem in (('maker', "no column 'maker'"), ('brand:0', '0 characters'), ('brand,brand', 'named twice')):
        ran = call('bpv_train', 'catalog.csv', '--text', wrong, '--out', 'other', cwd=tmp_path)
        assert ran.returncode == 1 and problem in ran.stderr and 'bpv_train: ' in ran.stderr
    assert not (tmp_path/'other').exists()


def test_an_odd_cell_of_a_field_is_empty_when_titles_are_labelled(tmp_path):
    df = pd.DataFrame(dict(title=['green tea', 'olive oil'] * 100, category=['tea', 'oil'] * 100, brand=['Acme', 'Bravo'] * 100))
    dls = TitleDataLoaders.from_df(df.assign(title=df['title'] + df.index.astype(str)), text_cols=['brand'], verbose=False)
    with (learn := linear_learner(dls)).quiet(): learn.fit()
    cat = Categorizer.from_learner(learn)
    odd = pd.DataFrame(dict(title=['green tea', 'olive oil'], brand=[float('inf'), True]))
    empty = odd.assign(brand='')
    assert cat.predict(odd).equals(cat.predict(empty))
    odd['brand'] = [float('inf'), 1.]
    odd.to_parquet(tmp_path/'t.parquet')
    assert cat.predict_file(tmp_path/'t.parquet', tmp_path/'o.csv', progress=False) == 2
    with pytest.raises(CatalogError, match='row 0.*brand'): read_catalog(odd.assign(category='a'), text_cols=['brand'], verbose=False)
