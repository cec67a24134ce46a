"The one loop for probabilities: order, threads, memory, and equality with a loop written out."
import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.titles import CharVocab, encode_titles
from bpv_fastai.decide.probabilities import TopProbsGatherer
from bpv_fastai.models.average import TitleEnsemble, average_log_probs
from bpv_fastai.models.inference import TitleBatches, map_log_probs, map_outputs, title_top_probs, top_probs, usable_cores
from bpv_fastai.models.network import TitleClassifier
from bpv_fastai.models.ngrams import NgramBag, fold_characters, ngram_rows

N_CATEGORIES = 23


@pytest.fixture(scope='module')
def titles():
    texts = synthetic_catalog(600, 10, seed=1)['title'].tolist() + ['', 'a', 'long ' * 100]
    return encode_titles(texts, CharVocab.fit(texts))


@pytest.fixture(scope='module')
def net(titles):
    torch.manual_seed(0)
    return TitleClassifier(len(titles.vocab), N_CATEGORIES, nh=16, n_layers=1)


@pytest.fixture
def ensemble(titles, net):
    torch.manual_seed(1)
    bag = NgramBag(len(titles.vocab), N_CATEGORIES, *fold_characters(titles.vocab.chars), n_rows=2**10)
    nn.init.normal_(bag.linear.weight)
    return TitleEnsemble([net, net, bag], [False, True, False])


def written_out(net, batches, normalize) -> np.ndarray:
    "Probabilities of all categories, one batch after the other"
    net.eval()
    with torch.no_grad(): return torch.cat([normalize(net(x)) for x, *_ in batches]).numpy()


class Counted:
    "A network that takes a while, longer for earlier batches, and counts what is in flight"
    def __init__(self): self.lock, self.running, self.most_running, self.threads = threading.Lock(), 0, 0, set()
    def __call__(self, x):
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.threads.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(.002 * (x[0, 0].item() % 3))
        with self.lock: self.running -= 1
        return x.float()


def numbered(n: int): return ((torch.full((1, 4), n - i), i) for i in range(n))


@pytest.mark.parametrize('n_threads', [1, 2, 5, None])
def test_results_come_in_order(n_threads):
    results = map_outputs(Counted(), numbered(60), lambda output, i: (output[0, 0].item(), i), n_threads=n_threads)
    assert list(results) == [(60. - i, i) for i in range(60)]


def test_one_thread_is_the_callers_and_several_have_one_torch_thread_each(two_threads):
    alone, several = Counted(), Counted()
    list(map_outputs(alone, numbered(10), lambda output, i: None, n_threads=1))
    assert alone.threads == {(threading.get_ident(), torch.get_num_threads())}
    list(map_outputs(several, numbered(40), lambda output, i: None, n_threads=3))
    assert 1 < several.most_running <= 3 and {n for _, n in several.threads} == {1}
    assert threading.get_ident() not in {thread for thread, _ in several.threads}


def test_few_batches_wait():
    "Neither the batches nor the results of a long list are in memory at once"
    n_taken = 0
    def batches():
        nonlocal n_taken
        for batch in numbered(200):
            n_taken += 1
            yield batch
    for n_done, _ in enumerate(map_outputs(Counted(), batches(), lambda output, i: i, n_threads=2)):
        assert n_taken <= n_done + 1 + 2 * 2 + 1


@pytest.mark.parametrize('n_threads', [1, 3])
def test_the_callers_modes_and_threads_come_back(titles, ensemble, n_threads, two_threads):
    n_torch_threads = torch.get_num_threads()
    ensemble.train()
    ensemble.members[0].eval()
    def modes(): return [m.training for m in ensemble.modules()]
    before = modes()
    with torch.enable_grad():
        for output in map_outputs(ensemble, TitleBatches(titles), lambda output: output, n_threads=n_threads):
            assert not any(modes()) and not output.requires_grad and torch.is_grad_enabled()
    assert modes() == before

    stopped = map_outputs(ensemble, TitleBatches(titles), lambda output: output, n_threads=n_threads)
    next(stopped)
    stopped.close()
    assert modes() == before and torch.get_num_threads() == n_torch_threads

    def fails(output): raise RuntimeError('of f')
    with pytest.raises(RuntimeError, match='of f'):
        list(map_outputs(ensemble, TitleBatches(titles), fails, n_threads=n_threads))
    assert modes() == before and torch.get_num_threads() == n_torch_threads


def test_several_callers_at_once(titles, ensemble):
    "Each gets what one alone gets, and PyTorch its number of threads"
    ensemble.eval()
    expected = title_top_probs(ensemble, titles, 5, n_threads=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        def call(i):
            top = title_top_probs(ensemble, titles, 5, n_threads=1 + i % 3)
            return top, torch.get_num_threads()
        # threads that are there: PyTorch gives a new one what was set last, by any thread, when it first asks
        started = threading.Barrier(4)
        with ThreadPoolExecutor(4, initializer=lambda: (torch.get_num_threads(), started.wait())) as pool:
            for top, n_torch_threads in pool.map(call, range(12)):
                assert np.array_equal(top.values, expected.values) and np.array_equal(top.ids, expected.ids)
            assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {2}
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)


@pytest.mark.parametrize('n_threads', [1, 2])
def test_equal_to_a_loop_written_out(titles, net, ensemble, n_threads):
    "To the last digit: logits are normalized once, log-probabilities of an ensemble are not normalized again"
    batches = TitleBatches(titles, bs=64)
    for network, normalize in ((net, lambda y: F.log_softmax(y.float(), -1)), (ensemble, lambda y: y)):
        log_probs = torch.cat(list(map_log_probs(network, batches, lambda lp: lp, n_threads=n_threads))).numpy()
        assert np.array_equal(log_probs, written_out(network, batches, normalize))
        assert np.allclose(np.exp(log_probs).sum(1), 1, atol=1e-5)
    outputs = torch.cat(list(map_outputs(net, batches, lambda y: y, n_threads=n_threads))).numpy()
    assert np.array_equal(outputs, written_out(net, batches, lambda y: y))


@pytest.mark.parametrize('n_threads', [1, 3])
def test_autocast_of_the_network_is_respected(titles, n_threads):
    torch.manual_seed(0)
    net, batches = TitleClassifier(len(titles.vocab), N_CATEGORIES, nh=16).eval(), TitleBatches(titles, bs=64)
    def outputs(): return torch.cat(list(map_outputs(net, batches, lambda y: y, n_threads=n_threads)))
    in_float32 = outputs()
    net.autocast = torch.bfloat16
    in_bfloat16 = outputs()
    assert in_bfloat16.dtype == torch.float32 and 0 < (in_float32 - in_bfloat16).abs().max() < .05
    assert np.array_equal(in_bfloat16.numpy(), written_out(net, batches, lambda y: y.float()))


def test_labels_come_along(titles, net):
    batches = [(x, torch.full((len(x),), i), 'more') for i, (x,) in enumerate(TitleBatches(titles))]
    results = list(map_outputs(net, batches, lambda y, targs, text: (len(y), len(targs), targs[0].item(), text)))
    assert results == [(len(x), len(x), i, 'more') for i, (x, *_) in enumerate(batches)]


@pytest.mark.parametrize('k', [1, 5, N_CATEGORIES, 100])
def test_top_probs_and_tail_against_the_full_matrix(titles, ensemble, k):
    batches = TitleBatches(titles, bs=50)
    probs = written_out(ensemble, batches, torch.exp)
    top = top_probs(ensemble, batches, k)
    k = min(k, N_CATEGORIES)
    assert top.values.dtype == np.float32 and top.ids.dtype == np.int32
    assert np.array_equal(top.values, -np.sort(-probs, 1)[:, :k])
    assert np.array_equal(np.take_along_axis(probs, top.ids.astype(int), 1), top.values)
    others = probs.astype(np.float64)
    np.put_along_axis(others, top.ids.astype(int), 0, 1)
    assert np.allclose(top.tail, np.stack([others.sum(0), (others**2).sum(0)], 1), rtol=1e-5, atol=1e-6)
    assert np.allclose(top.totals, probs.sum(0, dtype=np.float64), rtol=1e-5)

    without_tail = top_probs(ensemble, batches, k, tail=False)
    assert np.array_equal(without_tail.values, top.values) and np.array_equal(without_tail.ids, top.ids)
    assert without_tail.tail.shape == top.tail.shape and not without_tail.tail.any()

    gatherer = TopProbsGatherer(k)
    for start in range(0, len(probs), 50): gatherer.add(probs[start:start + 50])
    gathered = gatherer.result()
    assert np.allclose(top.tail, gathered.tail, rtol=1e-5, atol=1e-5) and top.bound == gathered.bound


@given(st.lists(st.text(alphabet='ab é日', max_size=30), min_size=1, max_size=40), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_titles_keep_their_order(net_titles, bs):
    "Each title has the probabilities that it has alone"
    encoded = encode_titles(net_titles, CharVocab('ab é日'))
    torch.manual_seed(0)
    net = TitleClassifier(len(encoded.vocab), 7, nh=8, n_layers=1).eval()
    top = title_top_probs(net, encoded, 7, bs=bs)
    with torch.no_grad():
        for i, row in enumerate(encoded):
            alone = net(torch.tensor(row.astype(np.int64))[None]).softmax(-1)[0].numpy()
            assert np.allclose(alone[top.ids[i]], top.values[i], atol=1e-5)


def test_batches_hold_each_title_once(titles):
    batches = TitleBatches(titles, bs=32)
    assert sorted(batches.order) == list(range(len(titles))) and len(batches) == len(list(batches))
    rows = [row[row > 0].tolist() for x, in batches for row in x]
    assert rows == [titles[int(i)].tolist() for i in batches.order]
    longest = [x.shape[1] for x, in batches]
    assert longest == sorted(longest, reverse=True)


def test_no_titles(titles, ensemble):
    top = title_top_probs(ensemble, encode_titles([], titles.vocab), 5)
    assert top.values.shape == top.ids.shape == (0, 5) and top.n_categories == N_CATEGORIES and not top.tail.any()
    with pytest.raises(ValueError, match='no titles'): top_probs(ensemble, [], 5)


def test_log_probs_can_be_trained_on(titles, net):
    "They are without gradients, but a loss may be computed from them, as the fitting of shares does"
    log_probs = torch.cat(list(map_log_probs(net, TitleBatches(titles), lambda lp: lp)))
    weight = torch.ones(1, requires_grad=True)
    F.cross_entropy(weight * log_probs, torch.zeros(len(titles), dtype=torch.long)).backward()
    assert weight.grad.isfinite().all()


def test_usable_cores_reads_the_quota_of_the_container(monkeypatch):
    from joblib.externals.loky.backend import context
    monkeypatch.delenv('LOKY_MAX_CPU_COUNT', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os.path, 'exists', lambda path: True)
    for quota, cores in (('150000 100000', 2), ('max 100000', 8), ('1000 100000', 1), ('9900000 100000', 8)):
        monkeypatch.setattr(context, 'open', lambda path, quota=quota: io.StringIO(quota), raising=False)
        assert usable_cores() == cores


def test_what_networks_refuse(net):
    with pytest.raises(ValueError, match='power of 2'): NgramBag(5, 2, [0] * 5, n_rows=1000)
    with pytest.raises(ValueError, match='4 entries for 5'): NgramBag(5, 2, [0] * 4)
    with pytest.raises(ValueError, match='at least one'): TitleEnsemble([])
    with pytest.raises(ValueError, match='1 directions for 3'): TitleEnsemble([net] * 3, [True])
    with pytest.raises(ValueError, match='add up to 1'): TitleEnsemble([net] * 3, shares=(.5, .4, .3))
    with pytest.raises(ValueError, match='3 numbers'): TitleEnsemble([net] * 3, shares=(1.,))
    with pytest.raises(ValueError, match="'prob' or 'log_prob'"): TitleEnsemble([net], average='median')
    with pytest.raises(ValueError, match="'prob' or 'log_prob'"): average_log_probs([torch.zeros(1, 2)], 'median')


@pytest.mark.parametrize('sizes', [(2, 1), (1, 2, 3), (3,)])
def test_words_in_a_row_of_any_sizes_in_any_order(sizes):
    vocab = CharVocab('abcdefghijklmnopqrstuvwxyz ')
    fold = torch.tensor(fold_characters(vocab.chars)[0])
    x = torch.tensor(encode_titles(['extra virgin oil'], vocab)[0].astype('int64'))[None]
    assert (ngram_rows(fold[x], 2**18, (), sizes)[1] > 0).sum() == sum(4 - n for n in sizes)
    assert (ngram_rows(fold[x[:, :1]], 2**18)[1] > 0).sum() == 0
