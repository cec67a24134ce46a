"The LSTM in bfloat16, compared with PyTorch's own in float32"
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bpv_fastai.models import network
from bpv_fastai.models.lstm import _Layer, bf16_lstm, bits_dropout
from bpv_fastai.models.network import TitleEncoder


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1e-9))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 9), st.integers(1, 33), st.integers(0, 1000))
def test_layer_is_exact_in_float64(bs, longest, width, nh, seed):
    torch.manual_seed(seed)
    rnn, x = nn.LSTM(width, nh, batch_first=True).double(), torch.randn(bs, longest, width, dtype=torch.float64)
    upstream = torch.randn(bs, longest, nh, dtype=torch.float64)

    def by_hand(x):
        bias = rnn.bias_ih_l0 + rnn.bias_hh_l0
        return _Layer.apply(x.transpose(0, 1), rnn.weight_ih_l0, rnn.weight_hh_l0, bias).transpose(0, 1)

    def with_gradients(forward):
        x_in = x.clone().requires_grad_()
        states = forward(x_in)
        return [states, *torch.autograd.grad(states, [x_in, *rnn.parameters()], upstream)]

    for a, b in zip(with_gradients(by_hand), with_gradients(lambda x: rnn(x)[0])):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_second_backward_is_refused():
    "The gates are overwritten by their gradients, so the graph serves once"
    rnn = nn.LSTM(4, 8, batch_first=True)
    total = bf16_lstm(rnn, torch.randn(2, 5, 4)).float().sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): total.backward()


def test_repeats_bit_for_bit_with_a_seed():
    rnn, x = nn.LSTM(8, 32, 3, batch_first=True, dropout=.3), torch.randn(7, 9, 8)
    def gradient():
        torch.manual_seed(3)
        rnn.zero_grad()
        bf16_lstm(rnn, x).float().square().sum().backward()
        return [p.grad.clone() for p in rnn.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(gradient(), gradient()))


def test_learns_as_nn_lstm_does(monkeypatch):
    "The same steps of SGD through either implementation end near each other"
    torch.manual_seed(1)
    x, y = torch.randint(1, 40, (32, 12)), torch.randint(0, 5, (32,))
    def trained():
        torch.manual_seed(0)
        net, head = TitleEncoder(40, nh=256, emb_p=0, hidden_p=0), nn.Linear(256, 5)
        first = net.rnn.weight_hh_l0.detach().clone()
        opt = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=.2, momentum=.9)
        for _ in range(40):
            with torch.autocast('cpu', torch.bfloat16): states = net(x)[0]
            loss = nn.functional.cross_entropy(head(states.float().amax(1)), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        return loss.item(), net.rnn.weight_hh_l0.detach() - first
    loss, moved = trained()  # how far the weights have moved
    calls = []
    monkeypatch.setattr(network, 'bf16_lstm', lambda rnn, x: calls.append(1) or rnn(x)[0])
    loss_torch, moved_torch = trained()
    assert len(calls) == 40 and loss < 1.5
    assert abs(loss - loss_torch) < .05 and relative(moved, moved_torch) < .15


@settings(max_examples=50, deadline=None)
@given(st.floats(0, .99), st.lists(st.integers(1, 9), min_size=1, max_size=4),
       st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_dropout_keeps_or_drops(p, shape, dtype):
    dropped = bits_dropout(torch.ones(shape, dtype=dtype), p)
    assert dropped.shape == tuple(shape) and dropped.dtype == dtype
    kept = dropped[dropped != 0].double()
    assert torch.allclose(kept, torch.tensor(1 / (1 - round(p * 2**16) / 2**16), dtype=torch.float64), rtol=.01)


def test_dropout_drops_its_share():
    torch.manual_seed(0)
    for p in (.1, .35, .9): assert abs(float((bits_dropout(torch.ones(100_000), p) == 0).float().mean()) - p) < .01


@pytest.mark.parametrize('p', [1., -.1, 2.])
def test_dropout_of_everything_is_refused(p):
    with pytest.raises(ValueError, match='below 1'): bits_dropout(torch.ones(3), p)


@pytest.mark.parametrize('rnn', [
    nn.GRU(20, 48, batch_first=True),
    nn.LSTM(20, 48, batch_first=True, bidirectional=True)])
def test_other_layers_are_refused(rnn):
    with pytest.raises(TypeError, match='not an nn.LSTM with batch_first and bias in one direction'):
        bf16_lstm(rnn, torch.randn(6, 15, 20))
