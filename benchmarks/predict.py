"""Titles a second and milliseconds for one title: our networks in every engine at hand, fastText, and TF-IDF with LinearSVC.

    python benchmarks/predict.py

From text to category, all cores, all in turns in one process; medians of rounds, and medians of each round's ratio to the fastest engine. The
networks are not trained (that changes no speed); fastText and the linear model are. OpenVINO and fastText take part where they are installed:
pip install openvino fasttext-numpy2-wheel"""
import importlib.util
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import torch
from common import fasttext_model, save
from fastcore.script import call_parse

from bpv_fastai.all import *
from bpv_fastai.categorizer import usable_cores

networks = {'pair 512': dict(nh=512), '512': dict(nh=512), '128': dict(nh=128), '128 and n-grams': dict(nh=128), 'QRNN 256 and n-grams': dict(nh=256, cell='qrnn'), 'student': dict(nh=64, n_layers=1, emb_sz=16), 'n-grams': {}}


class OpenVinoCategorizer(OnnxCategorizer):
    "The exported network in OpenVINO; each thread has a request of its own"
    device = torch.device('cpu')
    def __init__(self, path: Path, precision: str):
        import openvino
        super().__init__(path)
        cores = usable_cores()
        options = dict(INFERENCE_PRECISION_HINT=precision, NUM_STREAMS=str(cores), INFERENCE_NUM_THREADS=str(cores))
        self.compiled, self.mine = openvino.Core().compile_model(str(path/'network.onnx'), 'CPU', options), threading.local()

    def _engine(self, device, precision): return self
    def log_probs(self, x):
        if not hasattr(self.mine, 'request'): self.mine.request = self.compiled.create_infer_request()
        return torch.from_numpy(self.mine.request.infer([x.numpy()])[0].copy())


def engines(name: str, dls, folder: Path) -> dict:
    "The same network in each engine: its `predict`, and the size of its files"
    learns = [] if name == 'n-grams' else [bpv_learner(dls, **networks[name])]
    if name.startswith('pair'): learns.append(bpv_learner(dls, backwards=True, **networks[name]))
    if name.endswith('n-grams'): learns.append(ngram_learner(dls))
    learn = Ensemble(learns, progress=False) if len(learns) > 1 else learns[0]
    with learn.no_bar(): learn.f1_calibration.verbose = False; learn.f1_calibration.calibrate()
    cat, to = Categorizer.from_learner(learn), folder/name.replace(' ', '_')
    cat.save(to); cat.to_onnx(to, int8=name != 'n-grams')
    def torch_in(precision):
        mine = Categorizer.load(to)
        return lambda titles: mine.predict(titles, precision=precision, progress=False)
    found = {'torch float32': (torch_in('fp32'), 'weights.safetensors')}
    if name != 'n-grams' and means_bf16('auto', torch.device('cpu')): found['torch bfloat16'] = torch_in('bf16'), 'weights.safetensors'
    for kind, int8 in (('float32', False), *([('int8', True)] if name != 'n-grams' else [])):
        mine = OnnxCategorizer(to, int8=int8)
        found[f'onnxruntime {kind}'] = lambda titles, mine=mine: mine.predict(titles, progress=False), f'network{".int8" * int8}.onnx'
    if importlib.util.find_spec('openvino'):
        for kind, precision in (('float32', 'f32'), *([('bfloat16', 'bf16')] if 'torch bfloat16' in found else [])):
            mine = OpenVinoCategorizer(to, precision)
            found[f'openvino {kind}'] = lambda titles, mine=mine: mine.predict(titles, progress=False), 'network.onnx'
    return {engine: (f, (to/file).stat().st_size / 1e6) for engine, (f, file) in found.items()}


def others(df, folder: Path) -> dict:
    "What a user would pick instead, trained on the same table"
    linear = linear_baseline(df['title'], df['category'])[0]
    coefs = linear[-1]
    found = {'TF-IDF words, LinearSVC': (linear.predict, (coefs.coef_.nbytes + sum(map(len, linear[0].vocabulary_))) / 1e6)}
    if importlib.util.find_spec('fasttext'):
        model = fasttext_model(df['title'].str.lower(), CategoryVocab.fit(df['category']).encode(df['category']), epoch=25, lr=.5, wordNgrams=2, minn=3, maxn=5, bucket=200_000)
        model.save_model(str(folder/'fasttext.bin'))
        found['fastText'] = lambda titles: model.predict([t.lower() for t in titles]), (folder/'fasttext.bin').stat().st_size / 1e6
    return found


def seconds(f, titles: list) -> float:
    start = time.perf_counter()
    f(titles)
    return time.perf_counter() - start


def cost_of_ngrams(dls, folder: Path, titles: list, rounds: int) -> dict:
    "Share of the titles a second of a network 128 wide that a bag beside it takes, in each engine, in turns"
    alone, both = (engines(name, dls, folder) for name in ('128', '128 and n-grams'))
    for f, _ in (*alone.values(), *both.values()): f(titles[:1_000])
    return {e: median(1 - seconds(alone[e][0], titles) / seconds(both[e][0], titles) for _ in range(rounds)) for e in both}


@call_parse
def main(
    rounds: int = 5, # measurements of each
    only: str = '', # a comma-separated choice of networks, or 'cost' for what n-grams cost, instead of all
):
    "Measure, compare, save"
    everything = usda_foods()
    df, titles = everything.sample(42_000, random_state=0).reset_index(drop=True), everything['title'].sample(200_000, random_state=1).tolist()
    df['is_valid'] = df.index >= 40_000
    dls = TitleDataLoaders.from_df(df, valid_col='is_valid', bs=128, on_bad='drop', verbose=False)
    folder, found = Path(tempfile.mkdtemp()), {}
    sizes = {'pair 512': 2_048, '512': 4_096, '128': 20_000, '128 and n-grams': 20_000, 'QRNN 256 and n-grams': 20_000, 'student': 40_000, 'n-grams': 40_000}
    if only in ('', 'cost'):
        cost = cost_of_ngrams(dls, folder, titles[:10_000], 2 * rounds)
        print('what n-grams cost beside a network 128 wide:', {e: round(c, 3) for e, c in cost.items()}, flush=True)
        save('ngrams_cost', dict(share=cost, rounds=2 * rounds, cores=usable_cores()))
    for name in [] if only == 'cost' else only.split(',') if only else [*sizes, 'others']:
        contenders = others(df[:40_000], folder) if name == 'others' else engines(name, dls, folder)
        some = titles[:sizes.get(name, 100_000)]
        for f, _ in contenders.values(): f(some[:1_000])
        took = [{e: seconds(f, some) for e, (f, _) in contenders.items()} for _ in range(rounds)]
        fastest = max(contenders, key=lambda e: median(len(some) / t[e] for t in took))
        found[name] = {e: dict(titles_per_second=median(len(some) / t[e] for t in took), of_fastest=median(t[fastest] / t[e] for t in took), mb=mb,
                               one_title_ms=1e3 * median(seconds(f, [t]) for t in titles[:50])) for e, (f, mb) in contenders.items()}
        print(name)
        for e, row in found[name].items(): print(f"  {e:<24} {row['titles_per_second']:>9,.0f} titles/s  {row['of_fastest']:.2f} of the fastest  {row['one_title_ms']:6.1f} ms for one  {row['mb']:6.1f} MB", flush=True)
    if not only: save('predict', dict(rounds=rounds, networks=found, cores=usable_cores(), mean_length=sum(map(len, titles)) / len(titles)))
