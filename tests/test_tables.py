"The reader of tables where titles are to be labelled, and locks on folders."
import errno
import gzip
import io
import os
import signal
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest
from fuzz_tables import check_tables

from bpv_fastai.data.errors import CatalogError
from bpv_fastai.data.tables import BadCell, TableReader, as_text, text_problem


def rows(path, column='title', size=100_000):
    "All rows in their order: what can be read, or the problem with the row"
    found = []
    for part in TableReader(path, [column]).parts(size):
        cells = dict(zip(part.df.index, as_text(part.df[column])))
        cells.update({bad.row: bad for bad in part.misshapen})
        found += [cells[row] for row in sorted(cells)]
    return found


@pytest.mark.parametrize('name,content,wanted', [
    ('t.tsv', b'Olive oil\nTea\n\nOil\n', ['Olive oil', 'Tea', '', 'Oil']),
    ('t.tsv', b'title\nTea\n', ['Tea']),
    ('t.tsv', b'id\ttitle\n1\tTea\n', ['Tea']),
    ('t.tsv', b'Tea\t12\nOil\t7\n', ['Tea', 'Oil']),
    ('t.tsv', b'Tea\na\tb\n', ['Tea', BadCell(2, '', '2 columns instead of 1', 'a b')]),
    ('t.csv', b'title\nTea\n\nOil\n', ['Tea', '', 'Oil']),
    ('t.csv', b'title,x\na,b\n\nq\0z\n"lone\rreturn",c\n', ['a', BadCell(4, '', '1 column instead of 2', 'q\0z'), 'lone\rreturn']),
    ('t.csv', b'title,price\n"Tea, ""green""\nloose",2\nOil,3\n', ['Tea, "green"\nloose', 'Oil']),
    ('t.tsv', b'Caf\xe9\n', ['Caf\udce9'])])
def test_every_row_of_a_file_of_titles_is_given_in_its_place(tmp_path, name, content, wanted):
    (tmp_path/name).write_bytes(content)
    (tmp_path/f'{name}.gz').write_bytes(gzip.compress(content))
    for path in (tmp_path/name, tmp_path/f'{name}.gz'):
        for size in (1, 2, 100): assert rows(path, size=size) == wanted


def test_parts_have_the_size_that_was_asked_for(tmp_path):
    (tmp_path/'t.tsv').write_text('a\nb\nc\td\ne\n')
    reader = TableReader(tmp_path/'t.tsv', ['title'])
    assert [len(part.df) + len(part.misshapen) for part in reader.parts(3)] == [3, 1] and 0 <= reader.share <= 1
    (tmp_path/'header.csv').write_text('title\n')
    assert list(TableReader(tmp_path/'header.csv', ['title']).parts()) == []


def test_parquet_gives_numbers_and_what_is_missing(tmp_path):
    pd.DataFrame(dict(id=[1, 2], name=['Tea', None])).to_parquet(tmp_path/'t.parquet')
    titles = rows(tmp_path/'t.parquet', 'name')
    assert titles[0] == 'Tea' and pd.isna(titles[1]) and rows(tmp_path/'t.parquet', 'id') == ['1', '2']
    pd.DataFrame(dict(id=pd.array([2**60 + 1, None], dtype='Int64'))).to_parquet(tmp_path/'big.parquet')
    assert rows(tmp_path/'big.parquet', 'id')[0] == str(2**60 + 1)


def test_lines_of_the_standard_input(monkeypatch):
    class Stdin: buffer = io.BytesIO(b'Olive oil\n\nCaf\xe9\n')
    monkeypatch.setattr(sys, 'stdin', Stdin)
    assert rows('-') == ['Olive oil', '', 'Caf\udce9']


@pytest.mark.parametrize('name,content,column,says', [
    ('t.tsv', b'name\tcategory\na\tb\n', 'title', "no column 'title'; it has 'name', 'category'"),
    ('t.tsv', b'Title\nTea\n', 'title', 'or by its position, from 0, if the first row is no header'),
    ('t.tsv', b'Title\tPrice\nTea\t2\n', 'title', "it has 'Title', 'Price'. Name yours with title_col="),
    ('t.tsv', b'"Title"\t"Price"\nTea\t2\n', 'title', 'if the first row is no header'),
    ('t.tsv', b'\xef\xbb\xbfproduct_name\tx\nTea\t2\n', 'title', "it has 'product_name', 'x'"),
    ('t.csv', b'name\nTea\n', 'title', "no column 'title'; it has 'name'. Name yours with title_col="),
    ('t.csv', b'name;id\nTea;1\n', 'title', 'Save the table with commas, or as TSV'),
    ('t.tsv', b'Tea\n', 3, 'no column 3; there are 1, counted from 0'),
    ('t.csv.gz', b'title', 'title', 'damaged or not gzip'),
    ('t.tsv', b'', 'title', 'the file is empty')])
def test_files_that_cannot_be_labelled(tmp_path, name, content, column, says):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(CatalogError) as e: rows(tmp_path/name, column)
    assert says in str(e.value) and str(e.value).startswith(str(tmp_path/name))


@pytest.mark.parametrize('columns', [[0, -1], [-1]])
def test_positions_are_not_negative(tmp_path, columns):
    (tmp_path/'t.tsv').write_text('a\tx\nb\ty\n')
    with pytest.raises(CatalogError, match='no column -1'): list(TableReader(tmp_path/'t.tsv', columns).parts())


def test_generated_tables_work_or_end_in_one_sentence():
    "A sample of those of `python tests/fuzz_tables.py`"
    seen, failures = check_tables(150, seed=0)
    assert not failures, failures[0]
    assert min(seen[reader] for reader in ('catalog', 'loaders', 'labels', 'bpv_train', 'bpv_predict')) >= 5


def test_a_table_of_many_columns_names_some_of_them(tmp_path):
    (tmp_path/'wide.csv').write_text(','.join(f'column {i}' + 'x' * 1_000 for i in range(500)) + '\n')
    with pytest.raises(CatalogError, match="no column 'title'; it has 'column 0x+, .*…") as e: rows(tmp_path/'wide.csv')
    assert len(str(e.value)) < 2_000


def test_a_position_beyond_a_parquet_file(tmp_path):
    pd.DataFrame(dict(title=['a'], category=['x'])).to_parquet(tmp_path/'t.parquet')
    with pytest.raises(CatalogError, match='no column 5'): list(TableReader(tmp_path/'t.parquet', [0, 5]).parts())


def test_arrow_text_that_is_not_utf8():
    "As a Parquet file may hold it"
    encoded = pa.array([b'olive oil', b'caf\xe9', None]).view(pa.string())
    column = pd.Series(encoded, dtype=pd.StringDtype('pyarrow'))
    assert as_text(column) == ['olive oil', 'caf\udce9', None] and 'byte 0xe9 is not UTF-8' in text_problem(as_text(column)[1])
