"""Generate tables of all kinds, most of them broken, and hand them to whatever reads tables: reading a catalog, making
loaders, and the commands that train and label. Each works, or ends in one sentence; no row is lost.

    python tests/fuzz_tables.py                      # 2,000 tables
    python tests/fuzz_tables.py --tables 20000 --seed 7
    python tests/fuzz_tables.py --tables 1 --seed 4711    # one of them again

A table depends on its seed alone: table i of a run has the seed `seed + i`, which is printed where it fails."""
import contextlib
import csv
import datetime
import decimal
import fractions
import gzip
import io
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from fastcore.script import call_parse

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.cli import train
from bpv_fastai.cli.predict import bpv_predict
from bpv_fastai.data.catalog import catalog_report, read_catalog
from bpv_fastai.data.errors import TitleError
from bpv_fastai.train.loaders import TitleDataLoaders

model = Path(__file__).parent/'data'/'categorizer_v1'
words = ['Olive oil', 'TEA', 'tea!', 'green', 'Say "cheese"', "5' x 8\"", 'Crème', 'cre\u0300me', '絵文字', '😀', 'زيت', 'a,b', 'a;b', '12>3>4', '-', '7', '=1+1']
names = ['title', 'category', 'Title', 'Category', 'name', 'price', '', ' title', 'title ', 0, 1, None, 2.5, ('title', 'x'), 'ti\ntle', 'TITLE', 'is_valid', True]
odd_text = ['', ' ', '\t', '\u2028', '\0', 'a\0b', '\ud800', 'caf\udce9', '\ufeff', '\ufffd', 'x' * 5_000, '\n', 'a\nb', 'a\rb', 'a\tb', '"', '""', '"a', 'a"b"', '\x1b[0m', '\u202e', 'é' * 700, 'nan', 'None', 'NULL', 'title', 'category']
odd_values = [None, float('nan'), float('inf'), -float('inf'), pd.NA, pd.NaT, True, False, 0, -7, 2**70, 1.5, 3.0, 1e300, 1j, b'bytes', b'\xff', [], ['a', 'b'], (), ('a',), {'a': 1}, {1, 2},
              np.array(['x', 'y']), np.array([]), np.float32('nan'), np.int8(3), np.datetime64('2020-01-01'), np.datetime64('NaT'), pd.Timestamp('2020-01-01'), datetime.date(2020, 1, 1),
              decimal.Decimal('1.50'), decimal.Decimal('NaN'), decimal.Decimal('sNaN'), fractions.Fraction(1, 3), pd.Interval(0, 1), pd.Period('2020'), object, Exception('x'), np.str_('text'), np.bool_(True), pd.Series(['a'])]
extension_types = ['object', 'string', 'str', 'category', 'Int64', 'Float64', 'boolean', 'float32', 'int64', 'datetime64[ns]', 'timedelta64[ns]', 'complex128', 'bytes', 'bool', 'Sparse[float]',
                   pd.ArrowDtype(pa.string()), pd.ArrowDtype(pa.large_string()), pd.ArrowDtype(pa.int64()), pd.ArrowDtype(pa.binary()), pd.ArrowDtype(pa.decimal128(10, 2)), pd.ArrowDtype(pa.null()),
                   pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())), pd.ArrowDtype(pa.list_(pa.string())), pd.ArrowDtype(pa.timestamp('us', 'UTC')), 'string[pyarrow]', 'datetime64[ns, UTC]', 'period[D]']


def cell(r: random.Random, odd: float):
    "A cell: a word or two; or, with some probability, text or a value that nobody expects"
    if r.random() >= odd: return ' '.join(r.choices(words, k=r.randint(1, 3)))
    return r.choice(odd_text) if r.random() < .6 else r.choice(odd_values)


def column(r: random.Random, n: int, odd: float) -> pd.Series:
    "A column of some type, as far as its cells can have it"
    style = r.random()
    if style < .15: cells = [r.choice([7, 12, 3.5, None, 7.0]) for _ in range(n)]
    elif style < .3: cells = [r.choice(['x', 'y', 'z', '1>2']) for _ in range(n)]
    else: cells = [cell(r, odd) for _ in range(n)]
    series = pd.Series([None] * n, dtype=object)
    for i, value in enumerate(cells): series.iat[i] = value
    if r.random() < .5:
        with contextlib.suppress(Exception): return series.astype(r.choice(extension_types))
    return series


def frame(r: random.Random) -> pd.DataFrame:
    "A DataFrame: usual columns for the most part, odd names, types and indices for the rest"
    n, odd = r.choice([0, 1, 2, 8, 20, 40, 40]), r.choice([0, 0, 0, .02, .3, 1])
    labels = ['title', 'category'] if r.random() < .75 else r.choices(names, k=r.randint(0, 4))
    if r.random() < .3: labels = labels + r.choices(names, k=r.randint(1, 2))
    columns = [column(r, n, odd) for _ in labels]
    df = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(n))
    df.columns = pd.Index(labels, dtype=object, tupleize_cols=False)
    if r.random() < .2: df['is_valid'] = pd.Series([r.choice([True, False, 'True', '0'] + [None] * (odd > 0)) for _ in range(n)], dtype=object)
    choice, labels = r.random(), list(df.columns)
    if choice < .05 and labels: df.columns = pd.MultiIndex.from_tuples([(str(label), r.choice('ab')) for label in labels])
    elif choice < .08 and labels: df.columns = pd.CategoricalIndex(pd.Index([str(label) for label in labels]))
    index = r.random()
    if index < .1: df.index = pd.Index([r.choice([0, 'a', None, 2.5]) for _ in range(n)], dtype=object)
    elif index < .15: df.index = pd.MultiIndex.from_arrays([range(n), ['a'] * n])
    elif index < .2: df.index = pd.date_range('2020', periods=n)
    elif index < .25: df.index = pd.Index([float('nan')] * n)
    elif index < .3: df.index = pd.CategoricalIndex(['a'] * n)
    elif index < .35: df.index.name = 'title'
    if r.random() < .05: df.attrs['catalog'] = r.choice([{}, None, 'x'])
    return df


def as_file_text(r: random.Random, df: pd.DataFrame, sep: str) -> bytes:
    "The bytes of a TSV or CSV: with or without header and quotes, in some encoding, now and then damaged"
    rows = [[str(c) for c in df.columns]] if r.random() < .6 else []
    rows += [['' if value is None else str(value) for value in row] for row in df.itertuples(index=False, name=None)]
    if r.random() < .15 and rows: rows[r.randrange(len(rows))] += ['one more']
    if r.random() < .1 and rows: rows[r.randrange(len(rows))][:1] = []
    end = r.choice(['\n', '\n', '\r\n', '\r'])
    if r.random() < .7 and sep == ',':
        out = io.StringIO()
        csv.writer(out, lineterminator=end, quoting=r.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])).writerows(rows)
        text = out.getvalue()
    else: text = end.join(r.choice([sep, sep, sep, ';']).join(row) for row in rows) + r.choice(['', end, end * 3])
    encoding = r.choice(['utf-8'] * 8 + ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32', 'latin-1', 'cp1252', 'shift_jis'])
    data = bytearray(text.encode(encoding, 'surrogateescape' if encoding == 'utf-8' and '\ud800' not in text else 'replace'))
    return damaged(r, data) if r.random() < .15 else bytes(data)


def damaged(r: random.Random, data: bytearray) -> bytes:
    "Bytes with some of them changed, or without their end"
    data = bytearray(data)
    for _ in range(r.randint(0, 4)):
        if data: data[r.randrange(len(data))] = r.choice([0, 9, 10, 13, 34, 44, 255, r.randrange(256)])
    return bytes(data[:r.randrange(len(data) + 1)] if r.random() < .5 else data)


def as_parquet(r: random.Random, df: pd.DataFrame) -> bytes:
    "The bytes of a Parquet file, of columns that Arrow can hold"
    arrays, labels = [], []
    for i, label in enumerate(df.columns):
        values = df.iloc[:, i]
        try: arrays.append(pa.array(values, from_pandas=True))
        except Exception: arrays.append(pa.array([str(v).encode('utf-8', 'replace').decode() for v in values], pa.string()))
        labels.append(str(label).encode('utf-8', 'replace').decode())
    out = io.BytesIO()
    if not arrays: arrays, labels = [pa.nulls(len(df))], ['title']
    try: pq.write_table(pa.Table.from_arrays(arrays, labels), out, row_group_size=r.choice([3, 1_000]))
    except pa.ArrowException: pq.write_table(pa.table({'title': pa.array(['a', None])}), out := io.BytesIO())
    data = bytearray(out.getvalue())
    return damaged(r, data) if r.random() < .1 else bytes(data)


def file(r: random.Random, df: pd.DataFrame, folder: Path) -> Path:
    "The table as a file of some kind"
    ending = r.choice(['.tsv', '.tsv', '.csv', '.csv', '.txt', '.parquet', '.tsv.gz', '.csv.gz', '.parquet.gz', '.xlsx'])
    if 'parquet' in ending: data = as_parquet(r, df)
    else: data = as_file_text(r, df, ',' if 'csv' in ending else '\t')
    if ending.endswith('.gz') and r.random() < .9:
        data = gzip.compress(data, 1)
        if r.random() < .1: data = damaged(r, bytearray(data))
    path = folder/f'table{ending}'
    path.write_bytes(data)
    return path


def attempt(work, source) -> tuple:
    "The result of some work, or the sentence that it ends with; any other ending is an error"
    try: return work(), ''
    except TitleError as e: sentence = str(e)
    assert len(sentence.splitlines()) == 1 and len(sentence) < 2_000, f'not one sentence: {sentence!r}'
    place = 'DataFrame' if isinstance(source, pd.DataFrame) else str(source)
    assert place in sentence, f'no place is named: {sentence!r}'
    return None, sentence


def run(command, *args, **kwargs) -> str:
    "What a command says on its way out, one line of it, or nothing where it ends well"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): command(*args, **kwargs)
    except SystemExit as e:
        assert isinstance(e.code, str) and len(e.code.splitlines()) == 1 and '--debug' not in e.code, f'{command.__name__} says {e.code!r}'
        return e.code
    return ''


def rows_of(path: Path, title_col) -> int | None:
    "How many rows a file has, counted in another way; None where that is not plain"
    raw = path.read_bytes()
    if path.suffix == '.gz': raw, path = gzip.decompress(raw), path.with_suffix('')
    if path.suffix == '.parquet': return pq.ParquetFile(io.BytesIO(raw)).metadata.num_rows
    if path.suffix == '.csv': return None
    lines = raw.removeprefix(b'\xef\xbb\xbf').decode('utf-8', 'surrogateescape').split('\n')
    lines = lines[:-1] if lines[-1] == '' else lines
    return len(lines) - (title_col in lines[0].rstrip('\r').split('\t') if isinstance(title_col, str) else 0)


def check(seed: int, cat: Categorizer, folder: Path) -> Counter:
    "Hand one table to all readers; raises where one of them fails in another way than by a sentence"
    r = random.Random(seed)
    df = frame(r)
    source = df if r.random() < .5 else file(r, df, folder)
    is_file, seen = isinstance(source, Path), Counter()
    on_bad = r.choice(['raise', 'drop', 'drop'])
    columns = r.choice([{}] * 4 + [dict(title_col=0, category_col=1), dict(title_col='name'), dict(title_col='title', category_col='title')])

    catalog, _ = attempt(lambda: read_catalog(source, on_bad=on_bad, verbose=False, **columns), source)
    seen['catalog'] += catalog is not None
    if catalog is not None:
        report = catalog_report(catalog)
        assert len(catalog) == report.titles and all(isinstance(v, str) and v.strip() for name in ('title', 'category') for v in catalog[name])
        if not is_file: assert len(catalog) + report.dropped == len(df), 'rows were lost'
        assert str(report) and report.bad_rows is not None

    options = r.choice([{}, {}, dict(valid_pct=0), dict(valid_col='is_valid'), dict(valid_pct=.6, max_len=3)])
    try: dls = TitleDataLoaders.from_df(source, on_bad=on_bad, bs=8, verbose=False, device='cpu', **columns, **options)
    except TitleError as e:
        dls = None
        assert len(str(e).splitlines()) == 1, f'not one sentence: {e}'
    seen['loaders'] += dls is not None
    if dls is not None:
        n_rows = len(dls.train_ds) + len(dls.valid_ds) + dls.report.dropped
        if not is_file: assert n_rows == len(df), f'{n_rows} of {len(df)} rows'
        for b in dls.train: assert len(b) == 2

    if not is_file:
        title_col = columns.get('title_col', 'title')
        labels, _ = attempt(lambda: cat.predict(df, title_col=title_col, progress=False), source)
        if labels is not None: assert len(labels) == len(df) and labels.index.equals(df.index), 'rows out are not rows in'
        seen['labels'] += labels is not None
        return seen
    typed = {name: str(value) for name, value in columns.items()}
    said = run(train.bpv_train, str(source), out=str(folder/'model'), title=typed.get('title_col', 'title'), category=typed.get('category_col', 'category'), drop=on_bad == 'drop')
    seen['bpv_train'] += not said
    out = folder/('out' + r.choice(['.tsv', '.csv', '.parquet', '.tsv.gz']))
    said = run(bpv_predict, str(model), str(source), str(out), title=typed.get('title_col', 'title'), quiet=True)
    seen['bpv_predict'] += not said
    if said: assert not out.exists(), 'a file was written and an error said'
    else:
        expected = rows_of(source, columns.get('title_col', 'title'))
        read = dict(tsv=lambda: len(gzip.decompress(out.read_bytes()).split(b'\n')) - 1 if out.suffix == '.gz' else len(out.read_bytes().split(b'\n')) - 1,
                    csv=lambda: sum(1 for _ in csv.reader(out.open(newline='', encoding='utf-8', errors='surrogateescape'), strict=True)) - 1,
                    parquet=lambda: pq.ParquetFile(out).metadata.num_rows)[out.name.split('.')[1]]
        if expected is not None: assert read() == expected, f'{read()} rows out of {expected} rows in {out.name}'
        else: read()
        out.unlink()
    source.unlink()
    return seen


def check_tables(tables: int, seed: int) -> tuple[Counter, list]:
    "Check tables one by one. Returns how many were read in each way, and the traceback and seed of each failure"
    cat, seen, failures = Categorizer.load(model), Counter(), []
    csv.field_size_limit(2**31 - 1)
    train_catalog, train.train_catalog = train.train_catalog, lambda df, options, out: None  # reading alone
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            for i in range(seed, seed + tables):
                warnings.simplefilter('ignore')
                try: seen += check(i, cat, Path(folder))
                except Exception:
                    failures.append((i, traceback.format_exc()))
                    for path in Path(folder).glob('*.*'): path.unlink()
    finally: train.train_catalog = train_catalog
    return seen, failures


@call_parse
def main(
    tables: int = 2_000, # how many
    seed: int = 0, # of the first; table i has the seed `seed + i`
    shown: int = 5, # failures to show in full
):
    "Generate tables and hand them to whatever reads tables"
    begin = time.monotonic()
    seen, failures = check_tables(tables, seed)
    last_lines = Counter(text.strip().splitlines()[-1][:150] for _, text in failures)
    for i, text in failures[:shown]: print(f'table {i}\n{text}')
    for line, n in last_lines.most_common(20): print(f'{n:6}  {line}')
    print(f'{tables:,} tables in {time.monotonic() - begin:.0f} s, {len(failures):,} failures; read as: {dict(seen)}')
    sys.exit(bool(failures))
