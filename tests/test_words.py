"The network over words: vectors against a loop over words, padding, resumed and saved trainings, exports."
import copy
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.basics import SGD, Adam, set_seed
from hypothesis import given, settings
from hypothesis import strategies as st

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.cli.plan import describe_member
from bpv_fastai.data.errors import CategorizerError
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.titles import CategoryVocab, CharVocab, encode_titles
from bpv_fastai.decide.decider import Decider
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.learner import words_learner
from bpv_fastai.models.average import TitleEnsemble, weights_checksum
from bpv_fastai.models.inference import TitleBatches
from bpv_fastai.models.ngrams import char_ngrams, table_rows, word_ngrams
from bpv_fastai.models.pooling import pool_views
from bpv_fastai.models.qrnn import QRNN
from bpv_fastai.models.words import LONGEST_WORD, WordClassifier, fold_words, separate_words
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.optimizer import RowAdam
from bpv_fastai.train.recipe import Member, Recipe, word_epochs
from bpv_fastai.use.format import format_version

chars = 'abcxyzABZ éß0 19-,./日本語茶ไทยのக்கி'
vocab = CharVocab(sorted(set(chars)))
texts = st.text(alphabet=chars + 'a日 Ω', max_size=50)  # Ω is unknown, and a letter
small = dict(n_rows=2**12, dim=16, nh=8)


def words_of(title):
    "Words of a title as strings, in which an unknown character is `?`"
    title = ''.join(c if c in set(vocab.chars) else '?' for c in title)
    runs = re.findall(r'[日本語茶]|[^-,./ 日本語茶]+', title.lower())
    return [run[i:i + LONGEST_WORD] for run in runs for i in range(0, len(run), LONGEST_WORD)]


def network(n_layers=1, **sizes):
    torch.manual_seed(1)
    net = WordClassifier(len(vocab), 5, *fold_words(vocab.chars), **small | sizes, n_layers=n_layers)
    for p in net.head.parameters(): torch.nn.init.normal_(p)
    net.weights[1:] = torch.rand(len(net.weights) - 1) + .5
    return net.eval()


def batch(titles):
    (x,), = TitleBatches(encode_titles(titles, vocab), bs=99)
    return x, np.argsort(TitleBatches(encode_titles(titles, vocab), bs=99).order)


net = network(2)
number_of = dict(zip(vocab.chars, net.fold.tolist()[4:])) | {'?': net.fold.tolist()[3]}


def vector(word):
    "A word's vector: the word itself and its pieces with their edges, one after the other"
    f = torch.tensor([[0, *(number_of[c] for c in word), *[0] * 5]])
    pieces = [number[0, i] for n, (number, _) in zip((3, 4, 5), char_ngrams(f, (3, 4, 5))) for i in range(len(word) + 3 - n)]
    numbers = torch.stack([word_ngrams(f, (1,))[0][0][0, 0], *pieces])
    rows = table_rows(numbers, torch.ones_like(numbers, dtype=torch.bool), len(net.weights))
    scales = net.weights[rows] / net.weights[rows].square().sum().sqrt()
    return (net.embedding.weight[rows] * scales[:, None]).sum(0)


@given(st.lists(texts, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_against_a_loop_over_words(titles):
    x, order = batch(titles)
    with torch.no_grad():
        for title, logits in zip(titles, net(x)[order]):
            words = [vector(w) for w in words_of(title)]
            states = [rnn(torch.stack(w)[None])[0] for rnn, w in zip(net.encoder, (words, words[::-1]))] if words else [torch.zeros(1, 1, 8)] * 2
            pooled = pool_views(torch.cat(states, 2), torch.full((1, max(1, len(words))), not words))
            assert torch.allclose(logits, net.head.layers(pooled)[0], atol=1e-5)


@given(st.lists(texts, min_size=1, max_size=6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_title_is_the_same_alone_and_by_place(titles, backwards):
    "Alone, in its batch, with more padding, and by the operations that ONNX and Apple's GPUs have"
    ensemble = TitleEnsemble([net], [backwards])
    x, order = batch(titles)
    with torch.no_grad():
        together = ensemble(x)
        assert torch.allclose(together, ensemble(torch.nn.functional.pad(x, (0, 9))), atol=1e-5)
        for title, logits in zip(titles, together[order]): assert torch.allclose(logits, ensemble(batch([title])[0])[0], atol=1e-5)
        states, n_words = net._states(x)
        by_place, same = net._states_by_place(x)
    assert torch.equal(n_words, same) and n_words[order].tolist() == [len(words_of(t)) for t in titles]
    for a, b, n in zip(states, by_place, n_words): assert torch.allclose(a[:n], b[:n], atol=1e-5)


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_separated_words_are_the_same_characters(numbers, n_letters):
    f = torch.tensor([numbers + [0]])
    for wide in (separate_words(f, n_letters), separate_words(f, n_letters, max(numbers, default=0) > n_letters)):
        assert wide[wide > 0].tolist() == [n for n in numbers if n]
        words = ''.join(chr(97 + n) if n else ' ' for n in wide[0].tolist()).split()
        for word in words: assert len(word) <= LONGEST_WORD and (len(word) == 1 or max(map(ord, word)) - 97 <= n_letters)


@pytest.mark.parametrize('n_layers', [1, 2])
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_packed_steps_have_states_and_gradients_of_padded_ones(n_layers, lengths, seed):
    torch.manual_seed(seed)
    rnn, bs, longest = QRNN(4, 3, n_layers), len(lengths), max(lengths)
    at = torch.tensor([t * bs + i for i, n in enumerate(lengths) for t in range(n)])
    steps = torch.randn(len(at), 4, requires_grad=True)
    padded = torch.zeros(longest * bs, 4).index_copy(0, at, steps).view(longest, bs, 4).transpose(0, 1)
    outputs, gradients = [], []
    for states in (rnn.packed(steps, at, longest, bs), rnn(padded)[0]):
        outputs.append(states.transpose(0, 1).flatten(0, 1)[at])
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [steps, *rnn.parameters()]))
    assert torch.allclose(*outputs, atol=1e-6)
    for a, b in zip(*gradients): assert torch.allclose(a, b, atol=1e-5)


def test_sparse_gradients_are_those_of_a_dense_table():
    gradients, (x, _) = [], batch(['abc xyz', 'abc', '日本 a-b', ''])
    for sparse in (True, False):
        net = network(char_sizes=(2, 3)).train()
        net.embedding.sparse, net.drop.p, net.head.layers[0].p = sparse, 0., 0.
        net(x).square().sum().backward()
        gradients.append(net.embedding.weight.grad)
    assert gradients[0].is_sparse and torch.allclose(gradients[0].to_dense(), gradients[1], atol=1e-6)


def test_batches_without_a_letter_train():
    net = network().train()
    for title in ('', '- , /', ' '):
        logits = net(batch([title])[0])
        assert torch.equal(logits[0], net.head.layers[-1].bias)
        logits.sum().backward()


def test_scripts():
    x, order = batch(['ไทย' * 20, 'abc' * 20, '日本語茶', 'க்கி கி', '', '!'])
    assert net._states(x)[1][order].tolist() == [4, 4, 4, 2, 0, 1]  # the last is an unknown character
    assert fold_words('aAb日') == ([0, 0, 0, 4, 1, 1, 2, 5], 4)


def test_bfloat16_is_close():
    titles = synthetic_catalog(60, 6, seed=3)['title'].tolist()
    x, _ = batch(titles)
    with torch.no_grad():
        wanted = net(x)
        net.autocast = torch.bfloat16
        rounded, net.autocast = net(x), None
    assert 0 < (rounded - wanted).norm() / wanted.norm() < .02


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    path = tmp_path_factory.mktemp('words')
    return TitleDataLoaders.from_df(synthetic_catalog(900, 6, seed=3), bs=32, path=path, verbose=False)


def member(epochs=4, **kwargs): return Member('words', epochs, schedule='cosine', kwargs=small, **kwargs)


def train(dls, members, **kwargs): return Ensemble.train(dls, Recipe(list(members)), **dict(n_jobs=1, progress=False) | kwargs)


def test_it_learns_in_each_direction(dls):
    both = train(dls, [member(8), member(8, backwards=True)])
    assert both.reports['member'].tolist() == ['words'] * 2 and both.reports['weighted_f1'].min() > .6
    first, second = both.model.members
    assert not torch.equal(first.embedding.weight, second.embedding.weight)


def test_what_a_learner_does(dls):
    with pytest.raises(ValueError, match='opt_func can be Adam or RowAdam'): words_learner(dls, opt_func=SGD)
    with pytest.raises(ValueError, match='drop_mult 2'): words_learner(dls, drop_mult=2)
    with pytest.raises(ValueError, match='views are'): words_learner(dls, views=('mean',))
    learn = words_learner(dls, **small, drop_mult=.5, opt_func=Adam)
    assert learn.opt_func is RowAdam and learn.model.drop.p == .2 and learn.model.head.layers[0].p == .35
    with learn.quiet():
        learn.fine_tune(1)
        assert learn.lr_find(show_plot=False, num_it=30)
        learn.freeze()
        before = [p.clone() for p in learn.model.parameters()]
        learn.fit(1)
        moved = [not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())]
    assert moved == [False] * (len(moved) - 2) + [True] * 2
    assert learn.decide(['organic tea', '', '- -'], rule='best')['category'].notna().iloc[0]


def test_the_checksum_of_weights_knows_how_words_are_read():
    assert weights_checksum(network()) == weights_checksum(network()) != weights_checksum(network(char_sizes=(3, 4)))


def test_a_killed_training_resumes(dls, tmp_path):
    "The weights are those of an uninterrupted training"
    code = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from fastai.basics import Callback
from test_words import *
from bpv_fastai.train import members
import bpv_fastai.ensemble as module
class Kill(Callback):
    order = 200
    def after_batch(self):
        if self.train_iter == 30:
            self.learn.checkpoints.save()
            os._exit(9)
make = module.member_learner
def killed(dls, spec):
    learn = make(dls, spec)
    learn.add_cb(Kill())
    return learn
if sys.argv[1] == 'kill': module.member_learner = killed
torch.set_num_threads(1)
dls = TitleDataLoaders.from_df(synthetic_catalog(900, 6, seed=3), bs=32, path={str(tmp_path)!r}, verbose=False)
trained = train(dls, [member(2)], resume=sys.argv[1] != 'alone')
print(weights_checksum(trained.model))
"""
    def run(mode): return subprocess.run([sys.executable, '-c', code, mode], capture_output=True, text=True, timeout=300)
    killed = run('kill')
    assert killed.returncode == 9, killed.stderr
    assert len(list((tmp_path/'models'/'ensemble').glob('*.checkpoint'))) == 1
    resumed, alone = run('resume'), run('alone')
    assert resumed.stdout == alone.stdout and alone.stdout.strip().isdigit(), resumed.stderr + alone.stderr


def test_side_by_side_is_one_after_the_other(dls):
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: trainings = [train(dls, [member(1), Member('linear')], n_jobs=n) for n in (1, 2)]
    finally: torch.set_num_threads(n_threads)
    assert len({weights_checksum(t.model) for t in trainings}) == 1


@pytest.fixture(scope='module')
def cat(dls):
    set_seed(0)
    learn = words_learner(dls, **small)
    with learn.quiet(): learn.fit_one_cycle(4)
    return Categorizer.from_learner(learn)


titles = synthetic_catalog(200, 6, seed=4)['title'].tolist() + ['', '!!! -', 'x' * 300, '日本語茶']


def test_it_is_saved_and_loaded(cat, tmp_path):
    wanted = cat.predict(titles, top_k=3, precision='fp32')
    loaded = Categorizer.load(cat.save(tmp_path))
    assert loaded.predict(titles, top_k=3, precision='fp32').equals(wanted) and '1 network (words)' in repr(loaded)
    description = json.loads((tmp_path/'categorizer.json').read_text())
    assert description['version'] == format_version == 3 and description['networks'][0]['kind'] == 'words'
    rounded = loaded.predict(titles, precision='bf16')
    assert 0 < np.nanmax(abs(rounded['confidence'] - wanted['confidence'])) < .05


def test_it_runs_with_onnxruntime(cat, tmp_path):
    "Alone, and beside a network over characters, whose recurrent layers alone have weights of 8 bits"
    pytest.importorskip('onnxruntime', reason='the extra onnx')
    pytest.importorskip('onnx', reason='the extra onnx')
    from bpv_fastai.categorizer import OnnxCategorizer
    from bpv_fastai.models.network import TitleClassifier
    words, *sizes = cat.ensemble.members[0], len(cat.char_vocab), len(cat.vocab)
    other = copy.deepcopy(words)
    with torch.no_grad(): other.head.layers[-1].weight += .01  # onnxruntime's quantizer cannot have equal weights twice
    pair = TitleEnsemble([words, other, TitleClassifier(*sizes, nh=16, cell='qrnn')], [False, True, False])
    for name, ensemble in dict(alone=TitleEnsemble([words]), pair=pair).items():
        model = Categorizer(ensemble, cat.char_vocab, cat.vocab, Decider())
        model.to_onnx(tmp_path/name)
        wanted, found = model.predict(titles, top_k=6, precision='fp32'), OnnxCategorizer(tmp_path/name).predict(titles, top_k=6)
        assert found['category'].equals(wanted['category'])
        columns = [f'probability_{i + 1}' for i in range(6)]
        assert np.nanmax(abs(found[columns] - wanted[columns]).to_numpy(float)) < 1e-4
    int8 = OnnxCategorizer(tmp_path/'pair', int8=True).predict(titles, top_k=6)
    assert np.nanmax(abs(int8['confidence'] - wanted['confidence'])) < .05
    with pytest.raises(CategorizerError, match='holds no network.int8.onnx'): OnnxCategorizer(tmp_path/'alone', int8=True)


def test_ideographs_run_with_onnxruntime(tmp_path):
    pytest.importorskip('onnxruntime', reason='the extra onnx')
    pytest.importorskip('onnx', reason='the extra onnx')
    from bpv_fastai.categorizer import OnnxCategorizer
    model = Categorizer(TitleEnsemble([network(2)]), vocab, CategoryVocab('vwxyz'), Decider())
    model.to_onnx(tmp_path)
    many = ['日本語茶abc', 'ไทย' * 20, 'a日', 'abc xyz', '茶' * 70]
    wanted, found = model.predict(many, precision='fp32'), OnnxCategorizer(tmp_path).predict(many)
    assert np.allclose(found['confidence'], wanted['confidence'], atol=1e-4)


def test_a_recipe_with_words():
    assert all(m.kind != 'words' for m in Recipe.for_catalog(10_000).members)
    recipe = Recipe.for_catalog(10_000, words=True)
    words, = (m for m in recipe.members if m.kind == 'words')
    assert (words.name, words.optimizer, words.epochs) == ('words', 'adam', word_epochs(10_000) == 10 and 10)
    assert recipe.seconds(10_000, 2_000) > Recipe.for_catalog(10_000).seconds(10_000, 2_000)
    assert describe_member(words, True) == 'words for 10 epochs in bf16'
    assert any(m.kind == 'words' for m in Recipe.for_minutes(60, 10_000, 2_000, words=True).members)
    assert all(m.kind != 'words' for m in Recipe.for_minutes(.1, 10_000, 2_000, words=True).members)
