"Batches and loaders against slow, obvious references, and the catalogs that cannot be learned from."
import pickle
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from bpv_fastai.data.catalog import title_keys
from bpv_fastai.data.errors import CatalogError, TitleWarning
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.titles import CategoryVocab, CharVocab, decode_tokens, encode_titles
from bpv_fastai.train.loaders import TitleDataLoaders, TitleDataset, TitleDL


def titles(n, make, n_categories=3):
    return pd.DataFrame(dict(title=[make(i) for i in range(n)], category=[f'c{i % n_categories}' for i in range(n)]))


def loaders(df, **kwargs): return TitleDataLoaders.from_df(df, bs=32, verbose=False, **kwargs)


@pytest.mark.parametrize('backwards', [False, True])
def test_a_batch_is_what_a_loop_would_make(backwards):
    df = synthetic_catalog(500, 7)
    vocab, categories = CharVocab.fit(df.title), CategoryVocab.fit(df.category)
    encoded = encode_titles(df.title, vocab)
    dataset = TitleDataset(encoded, categories, categories.encode(df.category))
    dl = TitleDL(dataset, bs=64, shuffle=True, backwards=backwards)
    idxs = np.random.default_rng(0).permutation(500)[:33]
    x, y = dl.batch(idxs)
    rows = [list(encoded[i])[::-1] if backwards else list(encoded[i]) for i in idxs]
    longest = max(map(len, rows))
    assert x.tolist() == [[int(token) for token in row] + [0] * (longest - len(row)) for row in rows]
    assert categories.decode(y.tolist()) == df.category[idxs].tolist()
    assert [t for t, _ in dl.decode_batch((x, y), 33)] == decode_tokens(vocab, dl.new(backwards=False).batch(idxs)[0].numpy())


def test_a_large_alphabet_reaches_the_batch():
    texts = [''.join(chr(0x4e00 + (7 * i + 31 * j) % 20_000) for j in range(10)) for i in range(3_000)]
    encoded = encode_titles(texts, CharVocab.fit(texts, 1))
    assert encoded.buffer.dtype == np.uint16
    dl = TitleDL(TitleDataset(encoded, CategoryVocab(['x', 'y']), np.zeros(3_000, np.int64)), bs=100)
    assert sorted(t for b in dl for t, _ in dl.decode_batch(b, 100)) == sorted(texts)


def test_order_of_predictions_is_the_order_of_input():
    texts = ['x' * n for n in np.random.default_rng(0).permutation(100)]
    dl = loaders(synthetic_catalog(400, 5)).test_dl(texts)
    back = np.argsort(dl.get_idxs())
    widths = torch.cat([(x > 3).sum(1) + (x == 3).sum(1) for x, in dl])[back]
    assert widths.tolist() == [len(t) for t in texts]


def test_drop_last_first_batch_and_soft_targets():
    df = synthetic_catalog(200, 4)
    vocab, categories = CharVocab.fit(df.title), CategoryVocab.fit(df.category)
    soft = np.arange(400, dtype=np.float32).reshape(200, 2)
    dataset = TitleDataset(encode_titles(df.title, vocab), categories, categories.encode(df.category), (soft,))
    dl = TitleDL(dataset, bs=64, seed=1, drop_last=True)
    batches = list(dl)
    assert [len(x) for x, *_ in batches] == [64] * 3 and len(dl) == 3
    idxs = dl.get_idxs()[:64]
    assert (batches[0][2].numpy() == soft[idxs]).all()
    dl.first_batch = 2
    after_resume, next_pass = list(dl), list(dl)
    assert len(after_resume) == 1 and torch.equal(after_resume[0][0], batches[2][0]) and len(next_pass) == 3


def test_drop_last_leaves_random_titles_out():
    dls = loaders(synthetic_catalog(500, 4))
    dl = dls.train.new(bs=64, drop_last=True)
    lengths = dl.dataset.titles.lengths
    dropped = np.array([np.setdiff1d(np.arange(dl.n), dl.get_idxs()) for _ in range(40)])
    assert dropped.shape == (40, 375 % 64) and abs(lengths[dropped].mean() - lengths.mean()) < 3
    assert len(np.unique(dropped)) > 350 and [len(x) for x, _ in dl] == [64] * len(dl) == [64] * 5
    few = dls.train.new(bs=400, drop_last=True)
    assert list(few) == [] and len(few) == 0


def test_a_pickle_holds_no_tensors_of_the_device():
    dls = loaders(synthetic_catalog(400, 5))
    before = len(pickle.dumps(dls.train_ds))
    dls.train.one_batch()
    assert len(pickle.dumps(dls.train_ds)) == before


def test_a_huge_title_is_cut_with_one_warning():
    df = titles(60, lambda i: 'y' * 100_000 if i % 4 == 1 else f'title {i}')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        dls = loaders(df, valid_pct=.3)
    assert len([w for w in caught if 'cut' in str(w.message)]) == 1
    assert max(x.shape[1] for x, _ in [*dls.train, *dls.valid]) == 514


def test_fewer_titles_than_a_batch():
    dls = TitleDataLoaders.from_df(titles(40, lambda i: f'title {i}'), valid_pct=.3, bs=256, verbose=False)
    assert [len(x) for x, _ in dls.train] == [len(dls.train_ds)]


def test_a_file_and_a_table_give_the_same_loaders(tmp_path):
    df = synthetic_catalog(400, 5).assign(check=np.arange(400) % 5 == 0)
    df.to_csv(tmp_path/'mine.csv', index=False)
    from_file = TitleDataLoaders.from_csv(tmp_path/'mine.csv', valid_col='check', verbose=False)
    from_table = TitleDataLoaders.from_df(df, valid_col='check', verbose=False)
    assert list(from_file.valid_ds) == list(from_table.valid_ds) and len(from_file.valid_ds) == 80
    assert from_file.path == tmp_path and from_file.report.source == str(tmp_path/'mine.csv')
    by_folder = TitleDataLoaders.from_csv(tmp_path, 'mine.csv', verbose=False)
    assert list(by_folder.valid_ds) == list(TitleDataLoaders.from_df(df, verbose=False).valid_ds)


def test_flags_as_a_file_writes_them():
    flags = ['True', '0', ' FALSE', '1', 'false', 'TRUE'] * 10
    dls = loaders(titles(60, lambda i: f'title {i}', 2).assign(check=flags), valid_col='check')
    assert len(dls.valid_ds) == 30


def test_copies_of_a_title_are_trained_on_or_validated_on(capsys, tmp_path):
    df = synthetic_catalog(200, 4)
    df = pd.concat([df, df, df.assign(title=df.title.str.upper() + '!')], ignore_index=True)
    df.to_csv(tmp_path/'c.csv', index=False)
    for dls in (TitleDataLoaders.from_df(df, bs=32), TitleDataLoaders.from_csv(tmp_path/'c.csv', bs=32)):
        train, valid = (title_keys(title for title, _ in ds) for ds in (dls.train_ds, dls.valid_ds))
        assert not set(train) & set(valid) and abs(len(valid) - 150) <= 3
        assert dls.report.copies == 600 and dls.report.repeated >= 200 and dls.report.shared == 0
    assert capsys.readouterr().out.count('600 rows with a copy, which a random split keeps together') == 2


def test_a_column_that_puts_copies_on_both_sides_is_warned_of_and_they_can_be_left_out():
    df = synthetic_catalog(200, 4)
    df = pd.concat([df.assign(check=False), df[:30].assign(title=df.title.str.lower() + ' .', check=True),
                    synthetic_catalog(20, 4, seed=9).assign(category=df.category[:20], check=True)], ignore_index=True)
    with pytest.warns(TitleWarning, match="30 of 50 validation titles have a copy in training.*on_bad='drop'"): dls = loaders(df, valid_col='check')
    assert dls.report.shared == 30 and len(dls.valid_ds) == 50 and '30 validation titles with a copy in training' in str(dls.report)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        honest = loaders(df, valid_col='check', on_bad='drop')
    assert len(honest.valid_ds) == 20 and honest.report.shared == 0 and honest.report.dropped == 30
    assert set(honest.report.bad_rows.problem) == {'a training title is a copy of it'} and honest.report.bad_rows.row[0] == 200
    assert honest.report.titles == 220 and honest.report.copies == 0  # which no split has kept together


@pytest.mark.parametrize('df,message', [
    (titles(20, lambda i: f'title {i}', 1), 'one category'),
    (titles(3, lambda i: f'title {i}', 3), '3 distinct titles in 3 categories are too few to give a share of 0.25'),
    (pd.DataFrame(dict(title=['a'])), "no column 'category'"),
    (pd.DataFrame(dict(title=['a', None] * 9, category=['x', 'y'] * 9)), "row 1, column 'title': missing"),
])
def test_what_cannot_be_learned_from(df, message):
    with pytest.raises(CatalogError, match=message) as e: loaders(df)
    assert '\n' not in str(e.value)


def test_unseen_validation_category():
    df = titles(60, lambda i: f'title {i}').assign(valid=np.arange(60) % 5 == 0)
    df.loc[df.valid, 'category'] = 'new'
    problem = "12 validation titles with a category that no training title has, the first 'new' in row 0"
    with pytest.raises(CatalogError, match=problem) as e: loaders(df, valid_col='valid')
    assert e.value.worded({'on_bad': '--drop'}).endswith('leave them out of validation with --drop')


def test_unseen_validation_categories_left_out():
    df = pd.DataFrame(dict(title=list('abcd'), category=list('xxyz'), check=[False, False, False, True]))
    with pytest.raises(CatalogError, match="'z' in row 3"): loaders(df, valid_col='check')
    with pytest.warns(TitleWarning, match='1 validation title with a category .* left out'): dls = loaders(df, valid_col='check', on_bad='drop')
    assert len(dls.valid_ds) == 0
    assert dls.report.bad_rows.values.tolist() == [[3, 'category', 'no training title has this category', 'z']]
    assert 'catalog' not in df.attrs


def test_a_column_that_does_not_split():
    df = titles(60, lambda i: f'title {i}')
    odd = [pd.Series(['a']), ['a'], '\udc8a', pd.NA]
    columns = [2, 'yes', None, *(pd.Series([value] * 60, dtype=object) for value in odd)]
    columns.append(pd.Series([['a']] * 60, dtype=pd.ArrowDtype(pa.list_(pa.string()))))
    for check in columns:
        with pytest.raises(CatalogError, match="row 0, column 'check': it must hold only True and False"): loaders(df.assign(check=check), valid_col='check')
    with pytest.raises(CatalogError, match='every row'): loaders(df.assign(check=True), valid_col='check')


def test_refused_new_titles():
    dls = loaders(synthetic_catalog(400, 5))
    for bad in ([None], ['a', b'x'], [float('nan')], [['a']]):
        with pytest.raises(CatalogError, match='title '): dls.test_dl(bad)
    with pytest.raises(CatalogError, match='title 0 is a bytes'): dls.test_dl([b'oil'])
    with pytest.raises(CatalogError, match='no titles'): dls.test_dl([])
    with pytest.raises(TypeError, match='list of titles'): dls.test_dl('olive oil')
    with pytest.raises(ValueError, match='needs a DataFrame'): dls.test_dl(['olive oil'], with_labels=True)
    new = pd.DataFrame(dict(title=['a'], category=['new']))
    with pytest.raises(CatalogError, match='category new .row 0. is not among'): dls.test_dl(new, with_labels=True)
    moved = new.set_index(pd.Index([7]))
    with pytest.raises(CatalogError, match='category new .row 7. is not among'): dls.test_dl(moved, with_labels=True)
    with pytest.raises(CatalogError, match="no column 'title'"): dls.test_dl(pd.DataFrame(dict(name=['a'])))


def test_datasets_and_loaders_without_titles():
    dls = loaders(synthetic_catalog(400, 5))
    with pytest.raises(ValueError, match='1 targets for 300'): TitleDataset(dls.train_ds.titles, dls.vocab, [1])
    empty = TitleDL(dls.train_ds.new_empty())
    with pytest.raises(ValueError, match='no titles'): empty.one_batch()
    with pytest.raises(ValueError, match='no titles'): empty.show_batch()


def shops(n=900):
    "A third of the titles is in a category that no other shop has"
    df = synthetic_catalog(n, 6, seed=2)
    df['shop'] = [f'shop {i % 9}' for i in range(n)]
    alone = np.arange(n) // 9 % 3 == 0
    df.loc[alone, 'category'] = 'only ' + df['shop'][alone]
    return df


def test_rows_that_cannot_judge_train_with_all_titles():
    df = shops()
    dls = TitleDataLoaders.from_df(df, group_col='shop', min_freq=1, verbose=False)
    judged = {*dls.train_ds.titles.decode(), *dls.valid_ds.titles.decode()}
    assert len(judged) < df['title'].nunique() and dls.c == df['category'].nunique()
    everything = dls.with_all_titles()
    assert everything.other_ds is None and len(everything.valid_ds) == 0
    def rows(dset): return sorted(zip(dset.titles.decode(), dset.vocab.decode(dset.targets)))
    assert rows(everything.train_ds) == sorted(zip(df['title'], df['category']))
    whole = TitleDataLoaders.from_df(df, valid_pct=0, group_col='shop', min_freq=1, verbose=False).with_held_out(.3)
    assert not set(whole.train_ds.groups) & set(whole.valid_ds.groups)
    assert rows(whole.with_all_titles().train_ds) == rows(everything.train_ds)
    assert whole.with_backwards().other_ds is whole.other_ds


def test_recipes_of_groups_train_on_all():
    from bpv_fastai.train import recipe
    dls = TitleDataLoaders.from_df(shops(), group_col='shop', verbose=False)
    before, recipe.MOST_FINAL = recipe.MOST_FINAL, 10
    try: assert recipe.Recipe.for_loaders(dls).final and not recipe.Recipe.for_loaders(dls, final=False).final
    finally: recipe.MOST_FINAL = before


def test_decisions_are_fitted_on_some_groups_and_judged_on_others():
    from bpv_fastai.learner import bpv_learner
    dls = TitleDataLoaders.from_df(shops(), valid_pct=.5, group_col='shop', verbose=False)
    learn = bpv_learner(dls, nh=8)
    in_second = learn.f1_calibration._second_half(dls.valid)
    groups = dls.valid_ds.groups[dls.valid.get_idxs()]
    assert not set(groups[in_second]) & set(groups[~in_second]) and .25 <= in_second.mean() <= .75
    with learn.quiet(): learn.f1_calibration.calibrate()
    assert learn.decider.n_titles == 0  # its rule stays as it is for titles of other groups
    dls.valid_ds.groups = np.where(dls.valid_ds.groups == groups[0], 0, 1) * 0  # one group cannot be halved
    assert .4 < learn.f1_calibration._second_half(dls.valid).mean() < .6
