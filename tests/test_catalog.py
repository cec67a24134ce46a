"Reading tables, good ones and bad ones."
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.catalog import catalog_report, read_catalog, split_catalog, split_groups, title_keys
from bpv_fastai.data.errors import CatalogError
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.train.loaders import TitleDataLoaders

good = pd.DataFrame(dict(title=['Olive oil', 'Say "cheese"', 'Tee, grün', "it's 5'"], category=['1>2', '3', '1>2', '4']))


def read(source, **kwargs): return read_catalog(source, verbose=False, **kwargs)


@pytest.mark.parametrize('name', ['t.tsv', 't.txt', 't.tsv.gz', 't.csv', 't.csv.gz', 't.parquet', 't.pq', 'T.TSV'])
def test_every_kind_of_file_gives_the_same_table(tmp_path, name):
    path = tmp_path/name
    if 'parquet' in name or 'pq' in name: good.to_parquet(path)
    elif 'csv' in name: good.to_csv(path, index=False)
    else:
        text = ''.join(f'{t}\t{c}\n' for t, c in good.values)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith('gz') else text.encode())
    assert read(path).values.tolist() == good.values.tolist()


@pytest.mark.parametrize('text', ['a\tx\r\nb\ty\r\n', 'a\tx\nb\ty', '\ufeffa\tx\nb\ty\n', 'title\tcategory\na\tx\nb\ty\n', 'category\tid\ttitle\nx\t1\ta\ny\t2\tb\n'])
def test_line_ends_byte_order_marks_and_headers(tmp_path, text):
    (tmp_path/'t.tsv').write_bytes(text.encode())
    assert read(tmp_path/'t.tsv').values.tolist() == [['a', 'x'], ['b', 'y']]


def test_columns_by_position(tmp_path):
    (tmp_path/'t.tsv').write_text('1\tx\ta\n2\ty\tb\n')
    (tmp_path/'t.csv').write_text('1,x,a\n2,y,"b"\n')
    for name in ('t.tsv', 't.csv'):
        assert read(tmp_path/name, title_col=2, category_col=1).values.tolist() == [['a', 'x'], ['b', 'y']]


bad_files = {
    'empty.tsv': (b'', 'the file is empty'),
    'empty.tsv.gz': (gzip.compress(b''), 'the file is empty'),
    'one.tsv': (b'only titles\nno categories\n', 'row 1: 1 column instead of 2'),
    'three.tsv': (b'a\tx\na\tb\tx\n', 'row 2: 3 columns instead of 2'),
    'blank.tsv': (b'a\tx\n\nb\ty\n', 'row 2: 1 column instead of 2'),
    'title.tsv': (b'a\tx\n\ty\n', "row 2, column 'title': empty"),
    'category.tsv': (b'a\tx\nb\t \n', "row 2, column 'category': empty"),
    'bytes.tsv': (b'a\tx\nb\xff\ty\n', "row 2, column 'title': byte 0xff is not UTF-8"),
    'nul.tsv': (b'a\tx\nb\0\ty\n', "row 2, column 'title': holds a NUL character"),
    'utf16.tsv': ('a\tx\n'.encode('utf-16'), 'UTF-16'),
    'header.csv': (b'name,id\na,x\n', "no column 'title', 'category'"),
    'quote.csv': (b'title,category\na,x\n"b,y\nc,z\n', 'row 3'),
    'short.csv': (b'title,category\na\n', 'row 2: 1 column instead of 2'),
    'rowless.csv': (b'title,category\n', 'no rows'),
    'broken.tsv.gz': (b'\x1f\x8b\x08\x00 not gzip at all', 'damaged or not gzip'),
    'cut.tsv.gz': (gzip.compress(b'a\tx\n' * 1000)[:-20], 'damaged or not gzip'),
    'plain.tsv.gz': (b'a\tx\n', 'damaged or not gzip'),
    'table.parquet': (b'PAR1 no table', 'not a readable table'),
    'swapped.tsv': (b'Category\tTitle\nx\ta\n', "it has 'Category', 'Title'"),
    'nul.csv': (b'title,category\na\0,x\n', "row 2, column 'title': holds a NUL character"),
    'table.xlsx': (b'PK', 'does not tell what it is'),
}


@pytest.mark.parametrize('name', bad_files)
def test_a_bad_file_gets_one_clear_sentence(tmp_path, name):
    content, says = bad_files[name]
    (tmp_path/name).write_bytes(content)
    with pytest.raises(CatalogError) as e: read(tmp_path/name)
    assert says in str(e.value) and name in str(e.value) and '\n' not in str(e.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CatalogError, match='there is no such file'): read(tmp_path/'none.tsv')
    (tmp_path/'folder.tsv').mkdir()
    with pytest.raises(CatalogError, match='folder'): read(tmp_path/'folder.tsv')


@pytest.mark.parametrize('column', ['title', 'category'])
@pytest.mark.parametrize('value,says', [(None, 'missing'), (float('nan'), 'missing'), (pd.NA, 'missing'), ('', 'empty'), ('\t ', 'empty'), ('a\0', 'NUL'),
                                        ('\ud800', 'surrogate'), ([1], 'a list, not text'), (b'x', 'a bytes, not text'), (np.array(['x', 'y']), 'a ndarray, not text'), (1j, 'a complex, not text'), (float('inf'), 'a float, not text'), (True, 'a bool, not text')])
def test_bad_cells_of_a_dataframe(column, value, says):
    df = pd.DataFrame({c: pd.Series(['a', 'b', 'c'], index=[10, 20, 30], dtype=object) for c in ('title', 'category')})
    df.at[20, column] = value
    with pytest.raises(CatalogError, match=f"row 20, column '{column}'.*{says}"): read(df)
    kept = read(df, on_bad='drop')
    assert kept.index.tolist() == [10, 30]
    bad = catalog_report(kept).bad_rows
    assert bad.row.tolist() == [20] and bad.column.tolist() == [column] and catalog_report(kept).dropped == 1


def test_names_of_several_levels_and_of_several_columns_are_refused():
    levels = good.set_axis(pd.MultiIndex.from_tuples([('title', 'a'), ('category', 'a')]), axis=1)
    twice = pd.concat([good, good], axis=1)
    for df in (levels, twice):
        with pytest.raises(CatalogError, match="several columns have a name of .*'title'.*or a name of several levels"): read(df)
    cat = Categorizer.load(Path(__file__).parent/'data'/'categorizer_v1')
    with pytest.raises(CatalogError, match='several levels'): cat.predict(levels)
    assert read(levels, title_col=('title', 'a'), category_col=('category', 'a')).values.tolist() == good.values.tolist()


def test_a_row_with_two_bad_cells_counts_once():
    kept = read(pd.DataFrame(dict(title=['a', None], category=['x', ''])), on_bad='drop')
    assert catalog_report(kept).dropped == 1 and len(catalog_report(kept).bad_rows) == 2


def test_numbers_become_text():
    df = read(pd.DataFrame(dict(title=[501, 502.5], category=[7, 8])))
    assert df.values.tolist() == [['501', '7'], ['502.5', '8']]
    assert read(pd.DataFrame(dict(title=['a', 'b'], category=[7., np.nan])), on_bad='drop').category.tolist() == ['7']


def test_names_asked_for_must_be_there(tmp_path):
    (tmp_path/'t.tsv').write_text('cat\tname\nx\ta\n')
    with pytest.raises(CatalogError, match="no column 'category'"): read(tmp_path/'t.tsv', title_col='name')


def test_a_huge_cell_of_a_csv(tmp_path):
    (tmp_path/'t.csv').write_text(f"title,category\n{'y' * 300_000},x\n")
    assert read(tmp_path/'t.csv').title.str.len().tolist() == [300_000]


def test_nothing_usable_and_wrong_arguments():
    with pytest.raises(CatalogError, match="row 0, column 'title': .*Every row of the table is bad"): read(pd.DataFrame(dict(title=['', ''], category=['x', 'y'])), on_bad='drop')
    with pytest.raises(CatalogError, match='no rows'): read(pd.DataFrame(dict(title=[], category=[])))
    with pytest.raises(ValueError, match='on_bad'): read(good, on_bad='skip')


def test_repeats_are_counted_and_kept():
    df = read(pd.DataFrame(dict(title=list('aabbc'), category=list('xyzzz'))))
    report = catalog_report(df)
    assert (len(df), report.repeated, report.ambiguous) == (5, 2, 1)


def test_the_report_outlives_a_trip_to_parquet(tmp_path):
    df = read(pd.DataFrame(dict(title=['a', None], category=['x', 'y'])), on_bad='drop')
    df.to_parquet(tmp_path/'t.parquet')
    assert catalog_report(pd.read_parquet(tmp_path/'t.parquet')).bad_rows.row.tolist() == [1]
    assert len(pd.concat([df, df])) == 2


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_characters='\0\r\n\t', exclude_categories=['Cs']), min_size=1).filter(str.strip)] * 2), min_size=1))
@settings(max_examples=200, deadline=None)
def test_tsv_gives_back_any_text(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp('tsv')/'t.tsv'
    path.write_text(''.join(f'{t}\t{c}\n' for t, c in rows), encoding='utf-8', newline='')
    if rows[0][0].startswith('\ufeff'): return
    assert list(map(tuple, read(path, title_col=0, category_col=1).values)) == rows
    if not {cell.strip().lower() for cell in rows[0]} & {'title', 'category'}: assert list(map(tuple, read(path).values)) == rows


@pytest.mark.parametrize('first', ['0\tTITLE', 'Title \tx', 'Title\tPrice', '"Name"\t"x"', 'category\tx', 'Title\tCategory'])
def test_a_first_row_that_may_be_a_header_is_asked_about_and_can_be_said_to_be_none(tmp_path, first):
    (tmp_path/'t.tsv').write_text(first + '\na\ty\n')
    with pytest.raises(CatalogError, match='or by their positions, from 0, if the first row is no header'): read(tmp_path/'t.tsv')
    assert read(tmp_path/'t.tsv', title_col=0, category_col=1).values.tolist() == [first.split('\t'), ['a', 'y']]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=300), st.floats(0, .95), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_split_is_stratified_and_leaves_each_category_in_training(categories, valid_pct, seed):
    df = pd.DataFrame(dict(title=[str(i) for i in range(len(categories))], category=[str(c) for c in categories]))
    try: train, valid = split_catalog(df, valid_pct, seed)
    except CatalogError:
        assert df.category.value_counts().mul(valid_pct).sum() < df.category.nunique() + 1
        return
    assert sorted([*train.index, *valid.index]) == list(range(len(df)))
    for category, n in df.category.value_counts().items():
        taken = (valid.category == category).sum()
        assert taken <= n - 1 and (abs(taken - n * valid_pct) < 1 + 1e-6 or taken == n - 1)


def split_of_rows(df, valid_pct, seed):
    "The split of a catalog without copies, as it was before copies were kept together"
    rng = np.random.default_rng(seed)
    codes = pd.factorize(df['category'], sort=True)[0]
    counts = np.bincount(codes)
    cuts = np.floor(np.cumsum(counts * valid_pct) + rng.random()).astype(int)
    quota = np.minimum(np.diff(cuts, prepend=0), counts - 1)
    order = np.lexsort((rng.random(len(df)), codes))
    place = np.arange(len(df)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_valid = np.zeros(len(df), bool)
    is_valid[order] = place < np.repeat(quota, counts)
    return is_valid


@given(st.lists(st.integers(0, 12), min_size=1, max_size=300), st.floats(0, .95), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_a_catalog_without_copies_is_split_as_it_always_was(categories, valid_pct, seed):
    df = pd.DataFrame(dict(title=[f'title {i}' for i in range(len(categories))], category=[str(c) for c in categories]))
    mine = split_groups(title_keys(df.title), df.category, valid_pct, np.random.default_rng(seed))
    assert (mine == split_of_rows(df, valid_pct, seed)).all()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=300), st.floats(0, .95), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_groups_are_never_divided_and_the_share_is_met(rows, share, seed):
    keys, strata = (np.array(column) for column in zip(*rows))
    chosen = split_groups(keys, strata, share, np.random.default_rng(seed))
    assert (chosen == split_groups(keys, strata, share, np.random.default_rng(seed))).all()
    assert not set(keys[chosen]) & set(keys[~chosen]) and set(strata) == set(strata[~chosen])
    sizes = np.bincount(keys)
    kept_back = len(set(strata)) * sizes.max()  # at most a group of each stratum, so that it keeps one
    assert -kept_back - sizes.max() <= chosen.sum() - share * len(keys) <= sizes.max()


def test_the_share_is_met_with_groups_of_all_sizes():
    rng = np.random.default_rng(0)
    keys = np.repeat(np.arange(2_000), np.minimum(rng.zipf(1.7, 2_000), 300))
    strata = rng.integers(0, 30, keys.max() + 1)[keys]
    shares = [split_groups(keys, strata, .25, np.random.default_rng(seed)).mean() for seed in range(20)]
    assert max(abs(share - .25) for share in shares) < 2 / len(keys)


@pytest.mark.parametrize('copies', [['Olive-oil 8"', 'olive oil 8', ' OLIVE OIL, 8!'], ['CRÈME', 'cre\u0300me', 'Crème™'], ['Straße', 'STRASSE'],
                                    ['ＡＢＣ １', 'abc-1'], ['हिन्दी चाय', 'हिन्दी, चाय'], ['❤️ tea', '❤ Tea']])
def test_copies_have_one_key(copies): assert len(set(title_keys(copies))) == 1


@pytest.mark.parametrize('titles', [['!!!', '???', '-'], ['❤️', '☀️', '❤'], ['tea 1', 'tea 2'], ['crème', 'creme'], ['कि', 'का'], ['C', 'D', '']])
def test_different_titles_have_different_keys(titles): assert len(set(title_keys(titles))) == len(titles)


def test_a_category_whose_titles_all_stand_in_others_stays_in_training():
    df = pd.DataFrame(dict(title=['a', 'a', 'b', 'b', 'c', 'd', 'e', 'f'], category=list('xyxyxxxx')))
    for seed in range(50):
        train, valid = split_catalog(df, .5, seed)
        assert set(valid.category) <= set(train.category) and not set(valid.title) & set(train.title)


def test_synthetic_catalog_has_the_shape_of_the_challenge():
    df = synthetic_catalog(100_000, 500, seed=5)
    lengths, counts = df.title.str.len(), df.category.value_counts()
    assert lengths.min() >= 1 and lengths.max() <= 274 and 55 < lengths.mean() < 70
    assert (lengths == 80).sum() > 5 * (lengths == 79).sum()
    assert len(counts) == 500 and counts.iloc[0] > 20 * counts.iloc[250] and df.category.str.count('>').nunique() > 1
    assert not df.equals(synthetic_catalog(100_000, 500, seed=6))
    assert synthetic_catalog(3_600, 3_008).category.nunique() == 3_008
    assert len(synthetic_catalog(1, 1)) == 1 and len(synthetic_catalog(3, 100)) == 3


@pytest.fixture
def small_parts(monkeypatch):
    import bpv_fastai.data.catalog as module
    monkeypatch.setattr(module, 'PART_SIZE', 7)


def test_parts_make_the_same_table(tmp_path, small_parts):
    "Files and tables are read in parts; where they are cut must not show"
    df = synthetic_catalog(40, 5)
    df.to_csv(tmp_path/'a.csv', index=False); df.to_csv(tmp_path/'a.tsv', sep='\t', index=False, header=False, quoting=3); df.to_parquet(tmp_path/'a.parquet')
    for file in ('a.csv', 'a.tsv', 'a.parquet'): assert read_catalog(tmp_path/file, verbose=False).equals(df)
    for index in (pd.Index([3] * 40), pd.MultiIndex.from_arrays([range(40), ['a'] * 40]), pd.date_range('2020', periods=40)):
        assert read_catalog(df.set_axis(index), verbose=False).equals(df.set_axis(index))
    odd = df.copy(); odd.attrs['array'] = np.arange(3)
    assert read_catalog(odd, verbose=False).equals(df)
    indexed = df.set_index('title'); indexed.to_parquet(tmp_path/'indexed.parquet')
    assert read_catalog(tmp_path/'indexed.parquet', verbose=False).equals(df)


def test_bad_rows_of_later_parts_have_their_own_numbers(tmp_path, small_parts):
    rows = [f'title {i},{i % 3}' for i in range(30)]
    rows[17], rows[25], rows[26] = ',1', 'a,b,c', 'x,'
    (tmp_path/'bad.csv').write_text('title,category\n' + '\n'.join(rows) + '\n')
    with pytest.raises(CatalogError, match="row 19, column 'title': empty. 3 cells or rows"): read_catalog(tmp_path/'bad.csv')
    df = read_catalog(tmp_path/'bad.csv', on_bad='drop', verbose=False)
    assert catalog_report(df).bad_rows.row.tolist() == [19, 27, 28] and len(df) == 27 and df.index.tolist() == list(range(27))
    assert catalog_report(df).dropped == 3


# Groups

rows_of_groups = st.lists(st.tuples(st.sampled_from('abcdef'), st.sampled_from('xyz'), st.sampled_from(['', 'A', 'B', 'C', 'D'])),
                          min_size=2, max_size=40)


def held_out_by_hand(df, train, valid):
    "What a split by groups promises, checked row by row"
    names = lambda part: {group or i for i, group in zip(part.index, part['group'])}
    held = names(df) - names(train)
    assert names(valid) <= held and names(train)
    for i, title, category, group in df[['title', 'category', 'group']].itertuples():
        has_copy = any(t.lower() == title.lower() for t in train['title'])
        known = category in set(train['category'])
        assert (i in valid.index) == ((group or i) in held and known and not has_copy)
        assert (i in train.index) == ((group or i) not in held)
    return held


@settings(max_examples=200, deadline=None)
@given(rows_of_groups, st.floats(.05, .6), st.integers(0, 99))
def test_groups_are_held_out_whole(rows, share, seed):
    df = pd.DataFrame(rows, columns=['title', 'category', 'group'])
    df['title'] += [str(i // 2) for i in range(len(df))]
    names = {group or i for i, group in enumerate(df['group'])}
    try: train, valid = split_catalog(df, share, seed, group_col='group')
    except CatalogError as e:
        assert len(names) == 1 and 'single group' in e.problem or 'held out can validate' in e.problem
        return
    held = held_out_by_hand(df, train, valid)
    sizes = {name: sum((group or i) == name for i, group in enumerate(df['group'])) for name in names}
    n_held = sum(sizes[name] for name in held)
    assert n_held <= 2 * share * len(df) + .5 or n_held == min(sizes.values()) or len(held) == 1
    again = split_catalog(df, share, seed, group_col='group')
    assert again[0].equals(train) and again[1].equals(valid)


def test_a_share_of_many_groups_and_one_huge_one():
    df = synthetic_catalog(4_000, 5, label_noise=0)
    df['shop'] = ['huge' if i % 2 else f'shop {i % 97}' for i in range(len(df))]
    for seed in range(5):
        train, valid = split_catalog(df, .2, seed, 'shop')
        assert abs(len(valid) / len(df) - .2) < .02 and 'huge' in set(train['shop'])
        assert not set(train['shop']) & set(valid['shop']) and set(train['category']) == set(df['category'])
    two = df.assign(shop=['A' if i < 3_000 else 'B' for i in range(len(df))])
    assert set(split_catalog(two, .1, 0, 'shop')[1]['shop']) == {'B'}  # the smaller, though more than the share
    assert len(split_catalog(two, 0., 0, 'shop')[1]) == 0


def test_a_category_of_one_group_is_lost_only_where_every_group_has_one():
    df = pd.DataFrame(dict(title=[f'title {i}' for i in range(30)], category=['both', 'only'] * 15, shop=['A', 'B', 'C'] * 10))
    df.loc[df['category'] == 'only', 'category'] += df['shop']
    train, valid = split_catalog(df, .3, 0, 'shop')
    assert set(valid['category']) == {'both'} and len(set(valid['shop'])) == 1
    assert len(df) - len(train) - len(valid) == 5
    report = TitleDataLoaders.from_df(df, valid_pct=.3, group_col='shop', seed=0, verbose=False).report
    assert (report.groups, report.left_out) == (3, 5) and '5 titles of the groups held out left out' in str(report)


def test_groups_that_cannot_be_split():
    df = pd.DataFrame(dict(title=['Tea', 'Oil', 'Salt', 'TEA!'], category=list('aabb'), shop='A'))
    with pytest.raises(CatalogError, match='4 titles of a single group.*without group_col='): split_catalog(df, group_col='shop')
    copies = df.assign(title='Tea', category='a', shop=['A', 'B', 'C', 'D'])
    with pytest.raises(CatalogError, match='can validate'): split_catalog(copies, group_col='shop')
    with pytest.raises(CatalogError, match="no column 'shop'"): read(good, group_col='shop')
    with pytest.raises(CatalogError, match='named twice'): read(good.assign(shop='A'), group_col='category')
    with pytest.raises(CatalogError, match='named twice'):
        read(good.rename(columns=dict(title='name')).assign(title='A'), title_col='name', group_col='title')


def test_groups_of_a_table(tmp_path):
    df = good.assign(shop=['A', None, 31, ' '])
    assert read(df, group_col='shop')['shop'].tolist() == ['A', '', '31', ''] and catalog_report(read(df, group_col='shop')).groups == 4
    df.to_csv(tmp_path/'shops.csv', index=False)
    df.astype({'shop': 'str'}).to_parquet(tmp_path/'shops.parquet')
    for name in 'shops.csv', 'shops.parquet':
        assert read(tmp_path/name, group_col='shop').columns.tolist() == ['title', 'category', 'shop']
    headless = tmp_path/'shops.tsv'
    df.to_csv(headless, sep='\t', index=False, header=False, quoting=3)
    assert read(headless, title_col=0, category_col=1, group_col=2)[2].tolist() == ['A', '', '31', '']
    with pytest.raises(CatalogError, match="row 2, column 'shop': a list") as e: read(good.assign(shop=['A', 'B', ['C'], 'D']), group_col='shop')
    assert e.value.column == 'shop'
