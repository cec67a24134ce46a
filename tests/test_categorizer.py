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

import bpv_fastai.use.predict
from bpv_fastai.categorizer import Categorizer, OnnxCategorizer
from bpv_fastai.data.errors import CatalogError, CategorizerError, TitleWarning
from bpv_fastai.data.samples import synthetic_catalog
from bpv_fastai.data.titles import CategoryVocab, CharVocab
from bpv_fastai.decide.decider import Decider
from bpv_fastai.models.average import TitleEnsemble
from bpv_fastai.models.network import TitleClassifier
from bpv_fastai.models.ngrams import NgramBag, fold_characters
from bpv_fastai.use.predict import map_file
from bpv_fastai.use.format import description_checksum, format_version, note_file

data = Path(__file__).parent/'data'
saved = data/'categorizer_v1'


@pytest.fixture(scope='module')
def cat(): return Categorizer.load(saved)


@pytest.fixture
def copy(tmp_path): return Path(shutil.copytree(saved, tmp_path/'copy'))


def signed(path, **changes):
    "A description with other contents whose checksums are right, as someone who means harm would make it"
    found = json.loads((path/'categorizer.json').read_text()) | changes
    found['checksum'] = description_checksum(found)
    (path/'categorizer.json').write_text(json.dumps(found))
    return path


def weighed(path):
    noted = note_file(path/'weights.safetensors')
    return signed(path, weights=dict(bytes=noted.bytes, sha256=noted.sha256))


def test_what_format_1_promises(cat):
    "Saved by version 0.1.0: these files stay as they are, and load and answer as they did in every later version"
    wanted = pd.read_csv(data/'categorizer_v1_predictions.csv', keep_default_na=False, na_values={c: [''] for c in ('confidence', 'probability_1', 'probability_2', 'probability_3')})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found = cat.predict(wanted['title'], top_k=3, precision='fp32')
    assert [w for w in said if 'more than 512' in str(w.message)] and len(said) == 1
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


def test_generators_are_read_in_chunks(cat, monkeypatch):
    seen, read, encode = [], [], bpv_fastai.use.predict.encode_titles
    def titles():
        for i in range(350): seen.append(i); yield f'title {i}'
    def encode_and_note(*args, **kwargs):
        read.append(len(seen))
        return encode(*args, **kwargs)
    monkeypatch.setattr(cat, 'chunk_size', 100)
    monkeypatch.setattr(bpv_fastai.use.predict, 'encode_titles', encode_and_note)
    assert cat.predict(titles(), progress=False)['title'].tolist() == [f'title {i}' for i in range(350)]
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
    plain = Categorizer(cat.ensemble, cat.char_vocab, cat.vocab, Decider())
    again = Categorizer.load(plain.save(tmp_path/'plain'))
    assert not again.predict(['Tea'])['accepted'].any() and again.predict(['Tea'], min_confidence=0)['accepted'].all()
    with pytest.raises(CategorizerError, match='without decisions'): again.predict(['Tea'], decide='f1')


def test_many_characters(tmp_path):
    "More than 256 tokens need two bytes each"
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
    cat = Categorizer.load(copy)
    cat.to_onnx(copy)
    titles = synthetic_catalog(50, 12)['title']
    assert Categorizer.load(copy).checksum == cat.checksum and OnnxCategorizer(copy).predict(titles)['category'].tolist() == cat.predict(titles, precision='fp32')['category'].tolist()
    (copy/'network.onnx').write_bytes(b'no graph')
    found = json.loads((copy/'onnx.json').read_text())
    found['files']['network.onnx'] = dict(bytes=8, sha256=note_file(copy/'network.onnx').sha256)
    found['checksum'] = description_checksum(found)
    (copy/'onnx.json').write_text(json.dumps(found))
    with pytest.raises(CategorizerError, match='no network that onnxruntime can run'): OnnxCategorizer(copy)


def test_what_is_no_title_classifier_is_not_saved():
    from fastai.learner import Learner
    from bpv_fastai.train.loaders import TitleDataLoaders
    dls = TitleDataLoaders.from_df(synthetic_catalog(60, 3), bs=16, verbose=False)
    with pytest.raises(CategorizerError, match='TitleClassifier'): Categorizer.from_learner(Learner(dls, torch.nn.Linear(2, 2)))


def test_predicting_in_several_threads_at_once(cat, two_threads):
    "The answers are those of one after the other, and PyTorch has its threads back"
    from concurrent.futures import ThreadPoolExecutor
    titles, before = synthetic_catalog(3_000, 6, seed=5)['title'].tolist(), torch.get_num_threads()
    wanted = cat.predict(titles, precision='fp32', progress=False)
    with ThreadPoolExecutor(4) as pool:
        for df in pool.map(lambda _: cat.predict(titles, precision='fp32', progress=False), range(8)): assert df.equals(wanted)
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {before}
    assert torch.get_num_threads() == before


def test_refusals_name_what_is_wrong(copy, tmp_path):
    networks = json.loads((copy/'categorizer.json').read_text())['networks']
    wide = [network | dict(nh=16_384) for network in networks]
    for changes, problem in ((dict(version=format_version + 1), 'pip install -U'), (dict(networks=wide), 'bytes; the sizes in categorizer.json ask for about'),
                             (dict(networks=[]), 'networks'), (dict(format='else'), "its format is 'else'"), (dict(categories=['a', 'a']), 'distinct'),
                             (dict(weights=7), 'weights'), (dict(max_len=-1), 'max_len'), (dict(shares=[.5, .6]), 'shares'), (dict(average='median'), 'average')):
        forged = Path(shutil.copytree(copy, tmp_path/'forged'))
        with pytest.raises(CategorizerError, match=problem): Categorizer.load(signed(forged, **changes))
        shutil.rmtree(forged)
    with pytest.raises(CategorizerError, match='there is no such folder'): Categorizer.load(tmp_path/'none')
    with pytest.raises(CategorizerError, match='holds no categorizer'): Categorizer.load(tmp_path)
    with pytest.raises(CategorizerError, match='this is a file') as refused: Categorizer.load(copy/'categorizer.json')
    assert refused.value.path == copy/'categorizer.json' and refused.value.remedy
    text = (copy/'categorizer.json').read_text()
    (copy/'categorizer.json').write_text(text.replace('"max_len": 512', '"max_len": 511'))
    with pytest.raises(CategorizerError, match='checksum does not match'): Categorizer.load(copy)
    (copy/'categorizer.json').write_text(text)
    weights = (copy/'weights.safetensors').read_bytes()
    for damaged in (weights[:-8], weights[:-8] + bytes(8), weights[:80]):
        (copy/'weights.safetensors').write_bytes(damaged)
        with pytest.raises(CategorizerError, match='checksum does not match'): Categorizer.load(copy)


def test_refused_networks_are_not_saved(cat, tmp_path):
    diverged = Categorizer.load(saved)
    with torch.no_grad(): diverged.ensemble.members[0].encoder.emb.weight.fill_(float('nan'))
    with pytest.raises(CategorizerError, match='nothing was saved'): diverged.save(tmp_path/'diverged')
    own_cell = TitleClassifier(len(cat.char_vocab), len(cat.vocab), nh=4, cell=torch.nn.LSTM)
    with pytest.raises(CategorizerError, match='custom cell'): Categorizer(TitleEnsemble([own_cell]), cat.char_vocab, cat.vocab, cat.decider).save(tmp_path/'own')
    (tmp_path/'file').touch()
    with pytest.raises(CategorizerError, match='this is a file'): cat.save(tmp_path/'file')
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_every_kind_of_ensemble_runs_with_onnxruntime(cat, tmp_path):
    pytest.importorskip('onnxruntime', reason='the extra onnx')
    pytest.importorskip('onnx', reason='the extra onnx')
    torch.manual_seed(0)
    sizes, titles = (len(cat.char_vocab), len(cat.vocab)), synthetic_catalog(300, 12)['title']
    bag = NgramBag(*sizes, *fold_characters(cat.char_vocab.chars), n_rows=2**12, dim=8)
    torch.nn.init.normal_(bag.linear.weight)
    lstm, qrnn = cat.ensemble.members[0], TitleClassifier(*sizes, nh=16, cell='qrnn')
    for name, ensemble in dict(pair=TitleEnsemble([lstm, qrnn], [False, True]), by_prob=TitleEnsemble([lstm, qrnn], [False, True], 'prob', [.7, .3]),
                               bag=TitleEnsemble([lstm, bag]), only_bag=TitleEnsemble([bag])).items():
        model = Categorizer(ensemble, cat.char_vocab, cat.vocab, cat.decider)
        model.to_onnx(tmp_path/name, int8=name == 'only_bag')
        wanted, found = model.predict(titles, precision='fp32'), OnnxCategorizer(tmp_path/name).predict(titles)
        assert found['category'].tolist() == wanted['category'].tolist()
        np.testing.assert_allclose(found['confidence'], wanted['confidence'], atol=1e-4)
        with pytest.raises(CategorizerError, match='holds no network.int8.onnx'): OnnxCategorizer(tmp_path/name, int8=True)
    with pytest.raises(CategorizerError, match='onnx.json is missing'): OnnxCategorizer(saved)
    with pytest.raises(CategorizerError, match='categorizer.json is missing'): Categorizer.load(tmp_path/'pair')
    with pytest.raises(ValueError, match='on the CPU'): OnnxCategorizer(tmp_path/'pair').predict(titles, device='cuda')
    (tmp_path/'pair'/'network.onnx').write_bytes(b'no graph')
    with pytest.raises(CategorizerError, match='changed or damaged'): OnnxCategorizer(tmp_path/'pair')


def test_labelling_a_file_resumes_after_a_kill(cat, tmp_path):
    "What a killed process has written is used, only by the same job, and the file is the one that a single run writes"
    titles = synthetic_catalog(1_000, 12)['title'].tolist()
    titles[3], titles[501] = 'two\tcolumns', ''
    (tmp_path/'t.tsv').write_text('\n'.join(titles) + '\n')
    code = f"""
import os, signal
import bpv_fastai.use.predict as p
from bpv_fastai.categorizer import Categorizer
cat, calls, encode = Categorizer.load({str(saved)!r}), [], p.encode_titles
def encode_or_die(*args, **kwargs):
    calls.append(1)
    if len(calls) == 5: os.kill(os.getpid(), signal.SIGKILL)  # the first call asks for the columns
    return encode(*args, **kwargs)
p.encode_titles, cat.chunk_size = encode_or_die, 100
cat.predict_file({str(tmp_path/'t.tsv')!r}, {str(tmp_path/'o.tsv')!r}, precision='fp32', progress=False)
"""
    killed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9 and not (tmp_path/'o.tsv').exists() and len(list(tmp_path.glob('.o.tsv.*.parts/00*'))) == 3, killed.stderr
    resumed = Categorizer.load(saved)
    resumed.chunk_size = 100
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        assert resumed.predict_file(tmp_path/'t.tsv', tmp_path/'o.tsv', precision='fp32', progress=False) == 1_000
    assert [str(w.message) for w in shown if '1 row read now got no category' in str(w.message)]  # the other was labelled before the kill
    assert {p.name for p in tmp_path.iterdir()} == {'t.tsv', 'o.tsv'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cat.predict_file(tmp_path/'t.tsv', tmp_path/'once.tsv', precision='fp32', progress=False)
    assert (tmp_path/'o.tsv').read_bytes() == (tmp_path/'once.tsv').read_bytes()
    lines = (tmp_path/'o.tsv').read_text().split('\n')
    assert lines[3] == 'two columns\t' and lines[501] == '\t' and [line.split('\t')[0] for line in lines[4:8]] == titles[4:8]


def test_a_file_is_labelled_by_any_function(tmp_path):
    "A table without the column `reason` will do where all rows have their shape"
    (tmp_path/'t.tsv').write_text('a\nb\n')
    def label(titles): return pd.DataFrame(dict(title=titles, category=['x'] * len(titles)), dtype=object)
    assert map_file(tmp_path/'t.tsv', tmp_path/'o.tsv', label, progress=False) == 2
    assert (tmp_path/'o.tsv').read_text() == 'a\tx\nb\tx\n'


def test_the_warning_of_cut_titles_names_its_remedy(cat, tmp_path):
    (tmp_path/'long.tsv').write_text('x' * 99_999 + '\n')
    for label in (lambda: cat.predict(['x' * 99_999], progress=False),
                  lambda: cat.predict_file(tmp_path/'long.tsv', tmp_path/'out.tsv', progress=False)):
        with pytest.warns(TitleWarning, match='1 title with more than .* Train with a larger max_len='): label()
