"Views, recurrent layers and classifier against loops; a title's logits alone and in any batch."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.learner import bpv_learner
from bpv_fastai.models.network import TitleClassifier, TitleEncoder
from bpv_fastai.models.pooling import PoolingLinearClassifier, check_views, pool_views, view_functions
from bpv_fastai.models.qrnn import QRNN
from bpv_fastai.train.loaders import TitleDataLoaders

device = 'cuda' if torch.cuda.is_available() else 'cpu'


def slow_views(output, mask, names):
    "Each title by itself, in float64, from its own states only"
    rows = []
    for states, padding in zip(output.double(), mask):
        own = [s for s, p in zip(states, padding) if not p]
        if not own:
            rows.append(torch.zeros(len(names) * output.shape[2], dtype=torch.float64))
            continue
        own = torch.stack(own)
        views = dict(last=own[-1], avg=own.mean(0), max=own.max(0)[0], min=own.min(0)[0])
        rows.append(torch.cat([views[n] for n in names]))
    return torch.stack(rows)


@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 5), st.sampled_from(['behind', 'before', 'anywhere']),
       st.lists(st.sampled_from(list(view_functions)), min_size=1, max_size=5),
       st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_views_equal_a_loop(bs, longest, nh, where, names, dtype, seed):
    gen = torch.Generator().manual_seed(seed)
    output = torch.randn(bs, longest, nh, generator=gen).to(dtype)
    lengths = torch.randint(0, longest + 1, (bs, 1), generator=gen)
    mask = torch.arange(longest) >= lengths if where == 'behind' else torch.arange(longest) < lengths
    if where == 'anywhere': mask = torch.rand(bs, longest, generator=gen) < .5
    output[mask] = torch.nan  # what a view must not see
    got = pool_views(output.to(device), mask.to(device), names).cpu()
    assert got.dtype == dtype and got.isfinite().all()
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert torch.allclose(got.double(), slow_views(output, mask, names), atol=tolerance, rtol=tolerance)


def test_no_gradient_flows_from_padding():
    output = torch.randn(3, 8, 4, requires_grad=True)
    mask = torch.arange(8) >= torch.tensor([[3], [8], [1]])
    pool_views(output, mask).sum().backward()
    assert (output.grad[mask] == 0).all() and output.grad.isfinite().all() and (output.grad[~mask] != 0).any()


@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('cell', ['lstm', 'qrnn'])
def test_logits_of_a_title_are_the_same_alone_and_in_a_batch(backwards, cell):
    df = synthetic_catalog(2_000, 20)
    dls = TitleDataLoaders.from_df(df, bs=64, backwards=backwards, verbose=False)
    model = bpv_learner(dls, nh=64, cell=cell).model.eval()
    titles = df.title.sample(200, random_state=0).tolist()
    with torch.no_grad():
        alone = torch.cat([model(dls.test_dl([t]).one_batch()[0]) for t in titles])
        for bs in (7, 64, 200):
            dl = dls.test_dl(titles, bs=bs)
            together = torch.cat([model(b[0]) for b in dl])[np.argsort(dl.get_idxs())]
            assert (alone - together).abs().max() < 1e-5


def test_half_precision_does_not_see_padding_either():
    model = TitleClassifier(60, 9, nh=32).eval()
    lengths = torch.randint(1, 50, (40,))
    x = torch.randint(3, 60, (40, 50)).masked_fill(torch.arange(50) >= lengths[:, None], 0)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        together = model(x)
        alone = torch.cat([model(x[i:i + 1, :n]) for i, n in enumerate(lengths)])
    assert (together - alone).abs().max() < .05


def test_the_paper_sizes():
    assert sum(p.numel() for p in TitleClassifier(128, 3_008).parameters()) == 9_426_112
    assert TitleClassifier(128, 10).encoder.emb.weight.shape == (128, 50)
    model = TitleClassifier(128, 10, views=('last', 'avg', 'max'), drop_mult=.5)
    assert model.head.layers[1].in_features == 3 * 512
    assert (model.encoder.emb_drop.p, model.encoder.rnn.dropout, model.head.layers[0].p) == (.075, .125, .175)


def test_head_takes_fastai_arguments():
    head = PoolingLinearClassifier(dims=[8, 5, 3], ps=[.1, .2], bptt=72, y_range=None, views=('last', 'min'))
    logits, raw, out = head((torch.randn(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)))
    assert logits.shape == (2, 3) and raw is out and raw.shape == (2, 6, 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3),
       st.integers(0, 1000))
def test_qrnn_is_its_formula_written_out(bs, longest, width, nh, n_layers, seed):
    torch.manual_seed(seed)
    rnn = QRNN(width, nh, n_layers).double()
    x = torch.randn(bs, longest, width, dtype=torch.float64, requires_grad=True)

    def slow():
        states = x
        for layer in rnn.layers:
            c, before, outputs = 0., torch.zeros_like(states[:, 0]), []
            for now in states.unbind(1):
                z, f, o = (torch.cat([before, now], 1) @ layer.weight.T + layer.bias).chunk(3, 1)
                c = f.sigmoid() * c + (1 - f.sigmoid()) * z.tanh()
                before = now
                outputs.append(o.sigmoid() * c)
            states = torch.stack(outputs, 1)
        return states

    upstream = torch.randn(bs, longest, nh, dtype=torch.float64)
    actual, expected = ([states, *torch.autograd.grad(states, [x, *rnn.parameters()], upstream)]
                        for states in (rnn(x)[0], slow()))
    for a, b in zip(actual, expected): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('names', ['last', (), ('mean',), ('last', 'median')])
def test_what_is_no_view_is_refused(names):
    with pytest.raises(ValueError, match='one of last, avg, max, min'): check_views(names)
    with pytest.raises(ValueError, match='one of last, avg, max, min'):
        pool_views(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), names)


@pytest.mark.parametrize('make, message', [
    (lambda: PoolingLinearClassifier([3 * 64, 10], [.35, .1]), '1 layers, but there are 2 dropouts'),
    (lambda: PoolingLinearClassifier([3 * 64 + 1, 10], [.35]), '4 views'),
    (lambda: TitleEncoder(40, cell='gru'), 'lstm, qrnn'),
    (lambda: TitleClassifier(128, 10, drop_mult=3), 'drop_mult 3'),
    (lambda: QRNN(20, 48, batch_first=False), 'batch_first')])
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_a_network_that_reads_the_begin_of_titles_is_saved(tmp_path):
    from bpv_fastai.categorizer import Categorizer, OnnxCategorizer
    from bpv_fastai.data.titles import CategoryVocab, CharVocab
    from bpv_fastai.decide.decider import Decider
    from bpv_fastai.models.average import TitleEnsemble, weights_checksum
    char_vocab, vocab = CharVocab('abcdefghij '), CategoryVocab(['a', 'b', 'c'])
    net = TitleClassifier(len(char_vocab), 3, nh=8, cell='qrnn', max_len=6)
    unbounded = TitleClassifier(len(char_vocab), 3, nh=8, cell='qrnn')
    unbounded.load_state_dict(net.state_dict())
    assert weights_checksum(net) != weights_checksum(unbounded)
    cat = Categorizer(TitleEnsemble([net]), char_vocab, vocab, Decider())
    titles = ['abcd', 'abcde fghij', 'abcdeffff']
    probs = cat.predict(titles, top_k=3)['probability_1']
    assert probs[1] == probs[2] and probs[0] != probs[1]
    loaded = Categorizer.load(cat.save(tmp_path/'model'))
    assert loaded.ensemble.members[0].config['max_len'] == 6 and loaded.predict(titles, top_k=3)['probability_1'].equals(probs)
    onnx = OnnxCategorizer(cat.to_onnx(tmp_path/'onnx', int8=False))
    assert np.allclose(onnx.predict(titles, top_k=3)['probability_1'], probs, atol=1e-4)
    with pytest.raises(ValueError, match='max_len is 0'): TitleClassifier(10, 3, max_len=0)
