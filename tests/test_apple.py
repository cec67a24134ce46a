"Training and labelling on a stand-in for Apple's GPUs, which have no float64 and lack some operations."
import warnings

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bpv_fastai.categorizer import Categorizer
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.train.recipe import Recipe


def is_there(t): return getattr(t, 'is_there', False)


class StandIn(TorchFunctionMode):
    "Tensors sent to 'mps' stay on the CPU, say that they are on 'mps', and refuse what Apple's GPUs refuse"
    device, in_backward = torch.device('mps'), False
    missing = ('embedding_bag', 'fmod', 'remainder', '__mod__', 'sparse')  # or wrong with integers of 64 bits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, '__name__', ''), dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if func == torch.Tensor.device.__get__: return self.device if is_there(args[0]) else func(*args)
        if func == torch.Tensor.data.__set__: args[0].is_there = is_there(args[1])
        there, moves = any(map(is_there, tensors)), name in ('to', 'cpu', 'as_tensor')
        target = torch.device('cpu') if name == 'cpu' else None
        def device_of(value):
            nonlocal target
            is_device = isinstance(value, torch.device) or isinstance(value, str) and value in ('cpu', 'mps')
            if is_device: target = torch.device(value)
            return torch.device('cpu') if is_device else value
        args = tuple(device_of(a) if moves else a for a in args)
        kwargs = {key: device_of(value) if key == 'device' else value for key, value in kwargs.items()}
        if there and not self.in_backward:
            if name in ('numpy', '__array__'): raise TypeError("can't convert an mps tensor to numpy")
            if name in self.missing and not args[0].is_floating_point() or name == 'embedding_bag':
                raise NotImplementedError(f'{name} is not implemented on mps')
            free = moves or name in ('copy_', '__set__', '__getitem__', '_has_compatible_shallow_copy_type')
            if not free and any(t.dim() and not is_there(t) for t in tensors):
                raise RuntimeError(f'{name}: expected all tensors to be on the same device')
        if name == 'backward': self.in_backward = True
        try: out = func(*args, **kwargs)
        finally:
            if name == 'backward': self.in_backward = False
        there = there if target is None else target == self.device
        if moves and out is args[0] and there != is_there(args[0]): out = out.clone()
        for t in tree_leaves(out):
            if not isinstance(t, torch.Tensor) or tensors and t is tensors[0]: continue
            if there and t.dtype == torch.float64: raise TypeError('mps has no float64')
            if there and t.is_sparse: raise NotImplementedError('mps has no sparse tensors')
            t.is_there = there
        return out


def test_the_stand_in_refuses_what_apple_refuses():
    with StandIn():
        t = torch.ones(3, device='mps')
        assert t.device.type == (t * 2)[:2].device.type == 'mps' and t.cpu().device.type == 'cpu'
        with pytest.raises(TypeError, match='float64'): t.double()
        with pytest.raises(TypeError, match='float64'): torch.as_tensor(np.ones(3), device='mps')
        with pytest.raises(TypeError, match='numpy'): t.numpy()
        with pytest.raises(RuntimeError, match='same device'): t + torch.ones(3)
        with pytest.raises(NotImplementedError): torch.arange(3, device='mps') % 2
        layer = torch.nn.Linear(3, 2).to('mps')
        layer(t).sum().backward()
        assert layer.weight.device == layer.weight.grad.device == torch.device('mps')


def test_members_shares_and_decisions_without_float64(tmp_path):
    with StandIn():
        dls = TitleDataLoaders.from_df(synthetic_catalog(600, 6), bs=32, path=tmp_path, device='mps', verbose=False)
        made = Ensemble.train(dls, Recipe.for_loaders(dls, epochs=1, nh=8, n_pairs=1), progress=False)
        assert len(made.model.shares) == 4 and made.final.decider.is_fitted and made.decider.is_fitted
        assert {p.device.type for p in made.model.parameters()} == {'mps'}
        titles = [dls.valid_ds[i][0] for i in range(50)]
        with made.quiet():
            decided = made.decide(titles)
            made.validate()
            made.f1_calibration.calibrate()
        cat = Categorizer.from_learner(made)
        there = cat.predict(titles, device='mps', precision='fp32', progress=False)
    here = cat.predict(titles, device='cpu', precision='fp32', progress=False)
    assert here.category.tolist() == there.category.tolist() == decided.category.tolist()
    assert np.allclose(here.confidence, there.confidence, atol=1e-5)
    assert np.allclose(here.confidence, decided.confidence, atol=1e-5)


def test_a_bag_computes_the_same_there(tmp_path):
    outputs = []
    for device, mode in (('cpu', warnings.catch_warnings()), ('mps', StandIn())):
        with mode:
            dls = TitleDataLoaders.from_df(synthetic_catalog(600, 6), bs=32, device=device, verbose=False)
            torch.manual_seed(0)
            bag = ngram_learner(dls, output_p=0., dim=16, lr=1.)
            with bag.quiet(): bag.fit_flat_cos(2, pct_start=0)
            outputs.append(bag.model.eval()(dls.valid.one_batch()[0]).detach().cpu())
    assert torch.allclose(*outputs, atol=1e-4)


def test_half_precision_is_refused_in_a_sentence():
    with StandIn():
        dls = TitleDataLoaders.from_df(synthetic_catalog(300, 4), bs=32, device='mps', verbose=False)
        learn = bpv_learner(dls, nh=8, cell='qrnn')
        with pytest.warns(UserWarning, match='stays in float32 on mps'): assert learn.to_bf16() is learn
        assert learn.model.autocast is None and not hasattr(learn, 'mixed_precision')
