"A saved model: what it promises, and what it refuses."
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from bpv_fastai.catalog import CatalogError, synthetic_catalog
from bpv_fastai.categorizer import Categorizer, CategorizerError, _checksum, _file_checksum
from bpv_fastai.titles import CharVocab

data = Path(__file__).parent/'data'
saved = data/'categorizer_v1'


@pytest.fixture(scope='module')
def cat(): return Categorizer.load(saved)


@pytest.fixture
def copy(tmp_path): return Path(shutil.copytree(saved, tmp_path/'copy'))


def signed(path, **changes):
    "A description with other contents whose checksums are right, as someone who means harm would make it"
    found = json.loads((path/'categorizer.json').read_text()) | changes
    found['checksum'] = _checksum({k: v for k, v in found.items() if k != 'checksum'})
    (path/'categorizer.json').write_text(json.dumps(found))
    return path


def weighed(path):
    weights = path/'weights.safetensors'
    return signed(path, weights=dict(bytes=weights.stat().st_size, sha256=_file_checksum(weights)))


def test_what_format_1_promises(cat):
    "Saved by version 0.1.0: these files stay as they are, and load and answer as they did in every later version"
    wanted = pd.read_csv(data/'categorizer_v1_predictions.csv', keep_default_na=False, na_values={c: [''] for c in ('confidence', 'probability_1', 'probability_2', 'probability_3')})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found = cat.predict(wanted['title'], top_k=3, precision='fp32')
    assert [w for w in said if 'longer than 512' in str(w.message)] and len(said) == 1
    assert found['category'].fillna('').tolist() == wanted['category'].tolist() and found['reason'].tolist() == wanted['reason'].tolist()
    assert found['accepted'].tolist() == wanted['accepted'].tolist()
    for c in ('confidence', 'probability_1', 'probability_2', 'probability_3'): np.testing.assert_allclose(found[c], wanted[c].astype(float), atol=1e-5)


def test_saved_again_it_is_the_same(cat, tmp_path):
    titles = synthetic_catalog(500, 12, seed=5)['title']
    again = Categorizer.load(cat.save(tmp_path/'again'))
    a, b = (c.predict(titles, top_k=4, precision='fp32') for c in (cat, again))
    pd.testing.assert_frame_equal(a, b, check_exact=False, atol=1e-6)
    assert sorted(p.name for p in (tmp_path/'again').iterdir()) == ['categorizer.json', 'weights.safetensors']


@given(st.lists(st.one_of(st.none(), st.text(max_size=60), st.text(alphabet='\0\t\n \ud800\udc80é😀', max_size=8), st.integers(), st.floats(), st.decimals(), st.fractions(), st.binary(max_size=3)), max_size=120))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_title_gives_a_row(cat, titles):
    found = cat.predict(titles, top_k=2, progress=False)
    assert len(found) == len(titles)
    bad = found['reason'] != ''
    assert (found['category'].isna() == bad).all() and not found['accepted'][bad].any() and set(found['category'][~bad]) <= set(cat.vocab)
    assert found['confidence'][~bad].between(0, 1).all()


def test_ten_thousand_odd_titles(cat):
    rng = np.random.default_rng(0)
    points = np.concatenate([np.arange(32, 127), rng.integers(0, 0x110000, 400), [0, 9, 10, 13, 0xd800, 0xdc80, 0x2028, 0x200f]])
    titles = [''.join(map(chr, rng.choice(points, n))) for n in rng.integers(0, 90, 10_000)]
    found = cat.predict(titles, progress=False)
    assert len(found) == 10_000 and found['title'].tolist() == titles and (found['category'].isna() == (found['reason'] != '')).all()
    some = np.flatnonzero(found['reason'] == '')[:300]
    alone = cat.predict([titles[i] for i in some], bs=1, precision='fp32')
    together = cat.predict(titles, precision='fp32', progress=False).iloc[some]
    assert alone['category'].tolist() == together['category'].tolist()
    np.testing.assert_allclose(alone['confidence'], together['confidence'], atol=1e-6)


def mutations(n):
    "Damaged bytes, cut and doubled files, and descriptions with odd values that are signed as if they were meant"
    rng = np.random.default_rng(1)
    odd = [None, True, -1, 0, 2**31, 2**63, 1e308, 'x', '', [], {}, [[]], ['x'] * 3, {'a': 1}, [None], '../../etc/passwd']
    def damage(path, name):
        raw, way = bytearray((path/name).read_bytes()), rng.integers(4)
        at = int(rng.integers(len(raw)))
        if way == 0: raw[at] ^= 1 << int(rng.integers(8))
        elif way == 1: raw = raw[:at]
        elif way == 2: raw = raw[:at] + raw[at:at + 50] + raw[at:]
        else: raw = bytearray(rng.integers(0, 256, at, dtype=np.uint8).tobytes())
        (path/name).write_bytes(raw)
    def change(path):
        found = json.loads((path/'categorizer.json').read_text())
        at = found
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(at[key], (dict, list)) and at[key] and rng.random() < .6: at = at[key]; continue
            at[key] = odd[int(rng.integers(len(odd)))]
            (path/'categorizer.json').write_text(json.dumps(found))
            return signed(path)
    def header(path):
        raw = (path/'weights.safetensors').read_bytes()
        text = raw[8:400].replace(b'[24', str([0, -1, 2**40, 2**63][int(rng.integers(4))]).encode().join([b'[', b'']), 1) if rng.random() < .5 else bytes(rng.integers(0, 256, 392, dtype=np.uint8))
        (path/'weights.safetensors').write_bytes(raw[:8] + text + raw[400:])
        weighed(path)
    ways = [lambda p: damage(p, 'categorizer.json'), lambda p: damage(p, 'weights.safetensors'), change, change, header]
    for i in range(n): yield i, ways[i % len(ways)]


def test_five_hundred_mutated_artefacts(tmp_path):
    refused = 0
    for i, mutate in mutations(500):
        path = Path(shutil.copytree(saved, tmp_path/str(i)))
        mutate(path)
        try: found = Categorizer.load(path).predict(['Olive oil', None, 'Tea'], progress=False)
        except CategorizerError as e:
            refused += 1
            assert '\n' not in str(e).strip() and len(str(e)) < 600
        else: assert len(found) == 3 and found['category'].isna().tolist() == [False, True, False]
        shutil.rmtree(path)
    assert refused > 350


def test_weights_that_are_not_what_they_should_be(copy):
    original = load_file(copy/'weights.safetensors')
    name = '0.encoder.emb.weight'
    for wrong in ({name: original[name].half()}, {name: original[name].reshape(-1)}, {name: original[name].clone().fill_(float('inf'))}, {'other': torch.zeros(1)}):
        tensors = {k: v for k, v in (original | wrong).items()}
        save_file(tensors, copy/'weights.safetensors')
        with pytest.raises(CategorizerError): Categorizer.load(weighed(copy))


def test_no_memory_is_taken_for_sizes_that_are_only_declared(copy):
    networks = json.loads((copy/'categorizer.json').read_text())['networks']
    signed(copy, networks=[n | dict(nh=16_384, n_layers=32, emb_sz=16_384) for n in networks] * 400)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CategorizerError, match='bytes; the sizes'): Categorizer.load(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_paths_and_pipes(copy, tmp_path):
    (copy/'weights.safetensors').unlink(); os.mkfifo(copy/'weights.safetensors')
    with pytest.raises(CategorizerError, match='is missing'): Categorizer.load(copy)
    (copy/'categorizer.json').unlink(); os.mkfifo(copy/'categorizer.json')
    with pytest.raises(CategorizerError, match='is missing'): Categorizer.load(copy)
    (tmp_path/'loop').mkdir(); (tmp_path/'loop'/'categorizer.json').symlink_to(tmp_path/'loop'/'categorizer.json')
    with pytest.raises(CategorizerError): Categorizer.load(tmp_path/'loop')


def test_nothing_runs_and_fastai_is_not_needed(copy, tmp_path):
    "A process that forbids fastai and every use of pickle loads and predicts; planted pickles are never opened as such"
    class Bomb:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/exploded',)
    for name in ('weights.bin', 'model.pkl', 'data.pkl', 'categorizer.pkl'): (copy/name).write_bytes(pickle.dumps(Bomb()))
    planted = Path(shutil.copytree(saved, tmp_path/'planted'))
    (planted/'weights.safetensors').write_bytes(pickle.dumps(Bomb())); weighed(planted)
    torch.save(dict(a=Bomb()), tmp_path/'zip'); other = Path(shutil.copytree(saved, tmp_path/'other')); shutil.copy(tmp_path/'zip', other/'weights.safetensors'); weighed(other)
    (other/'categorizer.json').write_bytes((other/'categorizer.json').read_bytes())
    code = f"""
import sys
sys.modules['fastai'] = None
sys.path.insert(0, {str(tmp_path)!r})
import bpv_fastai.categorizer as c
def forbid(event, args):
    if event in ('pickle.find_class', 'os.system', 'subprocess.Popen', 'exec', 'marshal.loads') and event != 'exec': raise SystemError(event)
found = c.Categorizer.load({str(copy)!r}).predict(['Tea'])  # once before: what is imported late may be compiled
sys.addaudithook(forbid)
assert len(c.Categorizer.load({str(copy)!r}).predict(['Tea', 'Oil'])) == 2
for bad in ({str(planted)!r}, {str(other)!r}):
    try: c.Categorizer.load(bad)
    except c.CategorizerError as e: print('refused', e)
    else: raise SystemExit('loaded')
assert not any(m.split('.')[0] == 'fastai' for m, v in sys.modules.items() if v is not None)
"""
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and ran.stdout.count('refused') == 2, ran.stderr
    assert not (tmp_path/'exploded').exists()


def test_generators_are_read_in_chunks(cat):
    seen, read = [], []
    def titles():
        for i in range(350): seen.append(i); yield f'title {i}'
    def label(*args):
        read.append(len(seen))
        return Categorizer._label(cat, *args)
    cat.chunk_size, cat._label = 100, label
    try: assert cat.predict(titles(), progress=False)['title'].tolist() == [f'title {i}' for i in range(350)]
    finally: del cat.chunk_size, cat._label
    assert read == [100, 200, 300, 350]


def test_sources_of_titles(cat):
    df = synthetic_catalog(60, 6).set_index(pd.Index([f'row {i}' for i in range(60)]))
    by_series, by_frame, by_array = cat.predict(df['title']), cat.predict(df), cat.predict(df['title'].to_numpy())
    assert by_series.index.tolist() == by_frame.index.tolist() == df.index.tolist() and by_array.index.tolist() == list(range(60))
    assert by_series['category'].tolist() == by_frame['category'].tolist() == by_array['category'].tolist()
    with pytest.raises(CatalogError, match="no column 'name'"): cat.predict(df, title_col='name')
    for wrong in (dict(top_k=0), dict(min_confidence=-1), dict(decide='argmax'), dict(precision='fp8'), dict(bs=0)):
        with pytest.raises(ValueError): cat.predict(['Tea'], **wrong)


def test_a_model_without_decisions(cat, tmp_path):
    from bpv_fastai.decisions import Decider
    plain = Categorizer(cat.ensemble, cat.char_vocab, cat.vocab, Decider())
    again = Categorizer.load(plain.save(tmp_path/'plain'))
    assert not again.predict(['Tea'])['accepted'].any() and again.predict(['Tea'], min_confidence=0)['accepted'].all()
    with pytest.raises(CategorizerError, match='without decisions'): again.predict(['Tea'], decide='f1')


def test_many_characters(tmp_path):
    "More than 256 tokens need two bytes each"
    from bpv_fastai.decisions import Decider
    from bpv_fastai.members import TitleEnsemble
    from bpv_fastai.pooling import TitleClassifier
    from bpv_fastai.titles import CategoryVocab
    chars = CharVocab([chr(0x4e00 + i) for i in range(40_000 - 0x4e00)] + [chr(0x10000 + i) for i in range(30_000)])
    model = Categorizer(TitleEnsemble([TitleClassifier(len(chars), 3, nh=4)]), chars, CategoryVocab(['a', 'b\n"', 'ü']), Decider())
    again = Categorizer.load(model.save(tmp_path/'m'))
    titles = ['一丁七', chr(0x10000 + 29_999) * 3]
    pd.testing.assert_frame_equal(model.predict(titles, top_k=3), again.predict(titles, top_k=3))
    assert again.vocab == model.vocab


def test_what_load_would_refuse_is_not_saved(copy):
    before = (copy/'categorizer.json').read_bytes()
    for report in (dict(loss=float('nan')), dict(model=object())):
        with pytest.raises(CategorizerError, match='nothing was saved'): Categorizer(**parts(copy) | dict(report=report)).save(copy)
    with pytest.raises(CategorizerError, match='max_len'): Categorizer(**parts(copy) | dict(max_len=10**7)).save(copy)
    assert (copy/'categorizer.json').read_bytes() == before and len(list(copy.iterdir())) == 2
    assert Categorizer.load(Categorizer(**parts(copy) | dict(report={'f1': {2: .1, 10: .2}})).save(copy)).report == {'f1': {'2': .1, '10': .2}}


def parts(path):
    cat = Categorizer.load(path)
    return {n: getattr(cat, n) for n in ('ensemble', 'char_vocab', 'vocab', 'decider', 'max_len', 'report')}


def test_hostile_descriptions(copy):
    networks = json.loads((copy/'categorizer.json').read_text())['networks']
    for cell in ([], {}, None, 'LSTM'):
        with pytest.raises(CategorizerError): Categorizer.load(signed(copy, networks=[networks[0] | dict(cell=cell)]))
    for deep in (900, 990, 995, 5_000):
        (copy/'categorizer.json').write_text('{"format": ' + '[' * deep + ']' * deep + '}')
        with pytest.raises(CategorizerError): Categorizer.load(copy)


def test_an_onnx_folder_inside_the_models_own_and_a_graph_that_is_none(copy):
    pytest.importorskip('onnxruntime', reason='the extra onnx')
    pytest.importorskip('onnx', reason='the extra onnx')
    from bpv_fastai.onnx import OnnxCategorizer
    cat = Categorizer.load(copy)
    cat.to_onnx(copy)
    titles = synthetic_catalog(50, 12)['title']
    assert Categorizer.load(copy).checksum == cat.checksum and OnnxCategorizer(copy).predict(titles)['category'].tolist() == cat.predict(titles, precision='fp32')['category'].tolist()
    (copy/'network.onnx').write_bytes(b'no graph')
    found = json.loads((copy/'onnx.json').read_text())
    found['files']['network.onnx'] = dict(bytes=8, sha256=_file_checksum(copy/'network.onnx'))
    found['checksum'] = _checksum({k: v for k, v in found.items() if k != 'checksum'})
    (copy/'onnx.json').write_text(json.dumps(found))
    with pytest.raises(CategorizerError, match='no network that onnxruntime can run'): OnnxCategorizer(copy)


def test_what_is_no_title_classifier_is_not_saved():
    from fastai.learner import Learner
    from bpv_fastai.dataloaders import TitleDataLoaders
    dls = TitleDataLoaders.from_df(synthetic_catalog(60, 3), bs=16, verbose=False)
    with pytest.raises(CategorizerError, match='TitleClassifier'): Categorizer.from_learner(Learner(dls, torch.nn.Linear(2, 2)))


def test_predicting_in_several_threads_at_once(cat):
    "The answers are those of one after the other, and PyTorch has its threads back"
    from concurrent.futures import ThreadPoolExecutor
    titles, before = synthetic_catalog(3_000, 6, seed=5)['title'].tolist(), torch.get_num_threads()
    wanted = cat.predict(titles, precision='fp32', progress=False)
    with ThreadPoolExecutor(4) as pool:
        for df in pool.map(lambda _: cat.predict(titles, precision='fp32', progress=False), range(8)): assert df.equals(wanted)
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {before}
    assert torch.get_num_threads() == before
