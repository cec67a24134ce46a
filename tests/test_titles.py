"Vocabularies, encoding, batches and their order, against slow and obvious references."
import pickle
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpv_fastai.data.errors import CatalogError
from bpv_fastai.data.sampler import SortishSampler, length_batches, padding_waste, sorted_order, sortish_order
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.titles import CategoryVocab, CharVocab, decode_tokens, encode_titles
from bpv_fastai.train.loaders import TitleDataLoaders, TitleDataset, TitleDL

any_text = st.text(st.characters(), max_size=40)  # surrogates included


@given(st.lists(any_text), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_char_vocab_counts_like_a_counter(titles, min_freq):
    counts = Counter(c for t in titles for c in t)
    expected = sorted((c for c in counts if counts[c] >= min_freq), key=lambda c: (-counts[c], ord(c)))
    vocab = CharVocab.fit(titles, min_freq)
    assert vocab.chars == expected and pickle.loads(pickle.dumps(vocab)) == vocab


@given(st.lists(any_text, min_size=1), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_encoding_is_a_lookup_by_character(titles, max_len):
    vocab = CharVocab.fit(titles[:len(titles) // 2], 1)
    ids = {c: i for i, c in enumerate(vocab.chars, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        encoded = encode_titles(titles, vocab, max_len)
    expected = [[1, *[ids.get(c, 3) for c in t[:max_len]], 2] for t in titles]
    assert [list(encoded[i]) for i in range(len(titles))] == expected
    assert encoded.decode() == [''.join(c if c in ids else '\ufffd' for c in t[:max_len]) for t in titles]
    assert encoded.n_cut == sum(len(t) > max_len for t in titles)


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1))
@settings(max_examples=100, deadline=None)
def test_category_vocab_orders_by_frequency(categories):
    vocab = CategoryVocab.fit(categories)
    counts = Counter(categories)
    assert list(vocab) == sorted(counts, key=lambda c: (-counts[c], c))
    assert vocab.decode(vocab.encode(categories)) == categories and pickle.loads(pickle.dumps(vocab)) == vocab


def test_a_large_alphabet_takes_two_bytes_and_reaches_the_batch():
    titles = [''.join(chr(0x4e00 + (7 * i + 31 * j) % 20_000) for j in range(10)) for i in range(3_000)]
    vocab = CharVocab.fit(titles, 1)
    encoded = encode_titles(titles, vocab)
    assert encoded.buffer.dtype == np.uint16 and len(vocab) > 10_000 and encoded.decode() == titles
    dl = TitleDL(TitleDataset(encoded, CategoryVocab(['x', 'y']), np.zeros(3_000, np.int64)), bs=100)
    assert sorted(t for b in dl for t, _ in dl.decode_batch(b, 100)) == sorted(titles)


def test_many_chunks_are_one_buffer():
    titles = [f'title {i}' for i in range(250_001)]
    encoded = encode_titles(pd.Series(titles), CharVocab.fit(titles))
    assert encoded.decode() == titles


lengths_st = st.lists(st.integers(2, 60), max_size=200).map(lambda o: np.array(o, dtype=np.int64))


@given(lengths_st, st.integers(1, 20), st.integers(1, 6), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_sortish_order(lengths, bs, window, seed):
    sampler, again = (SortishSampler(lengths, bs, window, seed) for _ in range(2))
    epochs = [list(sampler) for _ in range(3)]
    for batches, same in zip(epochs, [list(again) for _ in range(3)]):
        order = np.concatenate(batches) if batches else np.empty(0, int)
        assert sorted(order) == list(range(len(lengths))) and len(batches) == len(sampler)
        assert [b.tolist() for b in batches] == [b.tolist() for b in same]
        assert all(len(b) == bs for b in batches[:-2]) and all(len(b) >= min(bs, len(lengths)) // 2 for b in batches)
        if len(lengths): assert lengths[batches[0]].max() == lengths.max()
    if len(lengths) > 30: assert len({tuple(np.concatenate(e)) for e in epochs}) == 3
    if len(lengths) > 8 * bs > 8: assert len({frozenset(map(frozenset, e)) for e in epochs}) > 1


@given(st.lists(st.integers(2, 60), min_size=1, max_size=300).map(np.array), st.integers(1, 9), st.integers(1, 5),
       st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_processes_share_an_epoch(lengths, bs, window, world_size):
    shares = [list(SortishSampler(lengths, bs, window, 1, world_size, r)) for r in range(world_size)]
    sizes = [[len(b) for b in s] for s in shares]
    assert all(s == sizes[0] for s in sizes)
    seen = Counter(i for s in shares for b in s for i in b)
    assert set(seen) == set(range(len(lengths))) and sum(seen.values()) - len(lengths) < world_size


def test_a_window_is_sorted_by_brute_force():
    "Every full batch is a run of its sorted window; the windows are computed again from the shuffle"
    lengths = np.random.default_rng(0).integers(2, 60, 997)
    order = sortish_order(lengths, 10, 5, np.random.default_rng(3))
    shuffled = np.random.default_rng(3).permutation(997)
    windows = [shuffled[i:i + 50].tolist() for i in range(0, 950, 50)]
    windows[-1] = shuffled[900:].tolist()
    runs = [sorted(w, key=lambda i: -lengths[i])[k:k + 10] for w in windows for k in range(0, len(w), 10)]
    assert sorted(runs) == sorted(order[i:i + 10].tolist() for i in range(0, 997, 10))


def test_waste_and_sorted_order():
    lengths = np.random.default_rng(0).integers(2, 60, 500)
    assert sorted_order(lengths).tolist() == sorted(range(500), key=lambda i: -lengths[i])
    batches = np.array_split(np.arange(500), 7)
    cells, used = sum(len(b) * max(lengths[i] for i in b) for b in batches), lengths.sum()
    assert padding_waste(lengths, batches) == pytest.approx(1 - used / cells)


@pytest.mark.parametrize('backwards', [False, True])
def test_a_batch_is_what_a_loop_would_make(backwards):
    df = synthetic_catalog(500, 7)
    vocab, categories = CharVocab.fit(df.title), CategoryVocab.fit(df.category)
    encoded = encode_titles(df.title, vocab)
    dset = TitleDataset(encoded, categories, categories.encode(df.category))
    dl = TitleDL(dset, bs=64, shuffle=True, backwards=backwards)
    idxs = np.random.default_rng(0).permutation(500)[:33]
    x, y = dl.batch(idxs)
    rows = [list(encoded[i])[::-1] if backwards else list(encoded[i]) for i in idxs]
    longest = max(map(len, rows))
    assert x.tolist() == [[int(o) for o in r] + [0] * (longest - len(r)) for r in rows]
    assert categories.decode(y.tolist()) == df.category[idxs].tolist()
    forward = dl.new(backwards=False).batch(idxs)[0].numpy()
    assert [t for t, _ in dl.decode_batch((x, y), 33)] == decode_tokens(vocab, forward)


def test_order_of_predictions_is_the_order_of_input():
    dls = TitleDataLoaders.from_df(synthetic_catalog(400, 5), bs=32, verbose=False)
    titles = ['x' * n for n in np.random.default_rng(0).permutation(100)]
    dl = dls.test_dl(titles)
    back = np.argsort(dl.get_idxs())
    widths = torch.cat([(x > 3).sum(1) + (x == 3).sum(1) for x, in dl])[back]
    assert widths.tolist() == [len(t) for t in titles]


def test_what_a_data_loader_refuses():
    dls = TitleDataLoaders.from_df(synthetic_catalog(400, 5), bs=32, verbose=False)
    for bad in ([None], ['a', b'x'], [float('nan')], [['a']]):
        with pytest.raises(CatalogError, match='title '): dls.test_dl(bad)
    with pytest.raises(TypeError, match='one string'): encode_titles('a title', dls.char_vocab)
    new = pd.DataFrame(dict(title=['a'], category=['new']))
    with pytest.raises(CatalogError, match="category new .row 0. is not among"): dls.test_dl(new, with_labels=True)
    with pytest.raises(CatalogError, match="no column 'title'"): dls.test_dl(pd.DataFrame(dict(name=['a'])))


def test_categories_of_every_kind_of_column():
    names = ['b', 'a', 'c', 'a', 'b', 'a']
    columns = [pd.Series(names, dtype=dtype) for dtype in (None, object, 'category')]
    for column in (names, *columns, pd.Series(names, index=[9] * 6)):
        vocab = CategoryVocab.fit(column)
        assert vocab.entries == ['a', 'b', 'c'] and vocab.encode(column).tolist() == [1, 0, 2, 0, 1, 0]
    assert CategoryVocab.fit(pd.Series(names, dtype='category')[:2]).entries == ['a', 'b']
    assert vocab.encode(pd.Series(['a', None, 'z'])).tolist() == [0, -1, -1]
    assert vocab.encode(pd.Series([], dtype='str')).tolist() == []


def test_length_batches_hold_each_title_once_and_bound_the_cells():
    lengths = np.random.default_rng(0).integers(2, 600, 999)
    batches = list(length_batches(lengths, 16, 2_000))
    assert np.concatenate(batches).tolist() == sorted_order(lengths).tolist()
    assert all(len(b) <= 16 and (len(b) == 1 or len(b) * lengths[b].max() <= 2_000) for b in batches)
    assert list(length_batches(lengths[:0], 16)) == []


@pytest.mark.parametrize('make, exception, message', [
    (lambda: CharVocab('aba'), ValueError, 'distinct'),
    (lambda: CategoryVocab(['a', 'a']), ValueError, 'distinct'),
    (lambda: encode_titles(['a', 'b'], CharVocab('ab'))[2], IndexError, 'title 2 of 2'),
    (lambda: sortish_order([1, 2], bs=0), ValueError, 'at least 1'),
    (lambda: SortishSampler([1, 2], 10, rank=2, world_size=2), ValueError, 'rank 2'),
    (lambda: SortishSampler([1, 2], 10, world_size=2), ValueError, 'same seed')])
def test_what_titles_and_sampler_refuse(make, exception, message):
    with pytest.raises(exception, match=message): make()
