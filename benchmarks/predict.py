"""Titles a second and milliseconds for one title: our networks in every engine at hand, fastText, and TF-IDF with
LinearSVC.

    python benchmarks/predict.py

From text to category, all cores, all in turns in one process; medians of rounds, and medians of each round's ratio to
the fastest engine. The networks are not trained (that changes no speed); fastText and the linear model are. OpenVINO
and fastText take part where they are installed: pip install openvino fasttext-numpy2-wheel"""
import importlib.util
import tempfile
import threading
from functools import partial
from pathlib import Path
from statistics import median

import torch
from common import fasttext_model, save
from fastcore.script import call_parse
from timing import in_turns, median_ratio, seconds
from torch import nn

from bpv_fastai.categorizer import Categorizer, OnnxCategorizer
from bpv_fastai.data.samples import usda_foods
from bpv_fastai.data.titles import CategoryVocab
from bpv_fastai.ensemble import Ensemble
from bpv_fastai.learner import bpv_learner, ngram_learner
from bpv_fastai.models.inference import usable_cores
from bpv_fastai.models.precision import means_bf16
from bpv_fastai.train.loaders import TitleDataLoaders
from bpv_fastai.use.baseline import linear_svm

networks = {  # arguments of `bpv_learner`
    'pair 512': dict(nh=512), '512': dict(nh=512), '128': dict(nh=128), '128 and n-grams': dict(nh=128),
    'QRNN 256 and n-grams': dict(nh=256, cell='qrnn'), 'student': dict(nh=64, n_layers=1, emb_sz=16), 'n-grams': {}}
n_titles = {  # to time each on
    'pair 512': 2_048, '512': 4_096, '128': 20_000, '128 and n-grams': 20_000, 'QRNN 256 and n-grams': 20_000,
    'student': 40_000, 'n-grams': 40_000}


class OpenVinoNetwork(nn.Module):
    "The exported network in OpenVINO; each thread has a request of its own"
    returns_log_probs = True
    def __init__(self, path: Path, precision: str):
        super().__init__()
        import openvino
        cores = usable_cores()
        options = dict(INFERENCE_PRECISION_HINT=precision, NUM_STREAMS=str(cores), INFERENCE_NUM_THREADS=str(cores))
        self.compiled = openvino.Core().compile_model(str(path), 'CPU', options)
        self.of_thread = threading.local()

    def forward(self, x):
        if not hasattr(self.of_thread, 'request'): self.of_thread.request = self.compiled.create_infer_request()
        return torch.from_numpy(self.of_thread.request.infer([x.numpy()])[0].copy())


def saved(name: str, dls, folder: Path) -> Path:
    "Save an untrained model, for PyTorch and onnxruntime. Returns its folder"
    learns = [] if name == 'n-grams' else [bpv_learner(dls, **networks[name])]
    if name.startswith('pair'): learns.append(bpv_learner(dls, backwards=True, **networks[name]))
    if name.endswith('n-grams'): learns.append(ngram_learner(dls))
    learn = Ensemble(learns, progress=False) if len(learns) > 1 else learns[0]
    with learn.quiet(): learn.f1_calibration.calibrate()
    cat = Categorizer.from_learner(learn)
    path = cat.save(folder/name.replace(' ', '_'))
    return cat.to_onnx(path, int8=name != 'n-grams')


def engines(name: str, dls, folder: Path) -> dict:
    "Return for each engine the `predict` of the same network, and the size of its file in MB"
    path = saved(name, dls, folder)
    weights, graph, int8_graph = 'weights.safetensors', 'network.onnx', 'network.int8.onnx'
    is_recurrent = name != 'n-grams'
    has_bf16 = is_recurrent and means_bf16('auto', torch.device('cpu'))
    models = {'torch float32': (Categorizer.load(path), weights, 'fp32')}
    if has_bf16: models['torch bfloat16'] = Categorizer.load(path), weights, 'bf16'
    models['onnxruntime float32'] = OnnxCategorizer(path), graph, 'auto'
    if is_recurrent: models['onnxruntime int8'] = OnnxCategorizer(path, int8=True), int8_graph, 'auto'
    if importlib.util.find_spec('openvino'):
        for kind, precision in (('float32', 'f32'), *([('bfloat16', 'bf16')] if has_bf16 else [])):
            cat = OnnxCategorizer(path)
            cat.ensemble = OpenVinoNetwork(path/graph, precision)
            models[f'openvino {kind}'] = cat, graph, 'auto'
    return {engine: (partial(cat.predict, precision=precision, progress=False), (path/file).stat().st_size / 1e6)
            for engine, (cat, file, precision) in models.items()}


def others(df, folder: Path) -> dict:
    "Return what a user would pick instead, trained on the same table"
    linear = linear_svm(df['title'], df['category'], C=1.)
    mb = (linear[-1].coef_.nbytes + sum(map(len, linear[0].vocabulary_))) / 1e6
    contenders = {'TF-IDF words, LinearSVC': (linear.predict, mb)}
    if importlib.util.find_spec('fasttext'):
        targs = CategoryVocab.fit(df['category']).encode(df['category'])
        model = fasttext_model(df['title'].str.lower(), targs, epoch=25, lr=.5, wordNgrams=2, minn=3, maxn=5,
                               bucket=200_000)
        path = folder/'fasttext.bin'
        model.save_model(str(path))
        def predict(titles): return model.predict([t.lower() for t in titles])
        contenders['fastText'] = predict, path.stat().st_size / 1e6
    return contenders


def cost_of_ngrams(dls, folder: Path, titles: list, rounds: int) -> dict:
    "Measure by how much a bag beside a network 128 wide lowers its titles a second, in each engine, in turns"
    alone, both = (engines(name, dls, folder) for name in ('128', '128 and n-grams'))
    for predict, _ in (*alone.values(), *both.values()): predict(titles[:1_000])
    def cost(engine): return 1 - seconds(alone[engine][0], titles) / seconds(both[engine][0], titles)
    return {engine: median(cost(engine) for _ in range(rounds)) for engine in both}


def measure(contenders: dict, titles: list, single_titles: list, rounds: int) -> dict:
    "Measure titles a second of contenders in turns, and milliseconds for one title"
    for predict, _ in contenders.values(): predict(titles[:1_000])
    took = in_turns({name: partial(seconds, predict, titles) for name, (predict, _) in contenders.items()}, rounds)
    speed = {name: median(len(titles) / t[name] for t in took) for name in contenders}
    fastest = max(speed, key=speed.get)
    return {name: dict(titles_per_second=speed[name], of_fastest=median_ratio(took, fastest, name), mb=mb,
                       one_title_ms=1e3 * median(seconds(predict, [t]) for t in single_titles))
            for name, (predict, mb) in contenders.items()}


@call_parse
def main(
    rounds: int = 5, # measurements of each
    only: str = '', # a comma-separated choice of networks, or 'cost' for what n-grams cost, instead of all
):
    "Measure, compare, save"
    foods = usda_foods()
    df = foods.sample(42_000, random_state=0).reset_index(drop=True)
    titles = foods['title'].sample(200_000, random_state=1).tolist()
    df['is_valid'] = df.index >= 40_000
    dls = TitleDataLoaders.from_df(df, valid_col='is_valid', bs=128, on_bad='drop', verbose=False)
    folder, result = Path(tempfile.mkdtemp()), {}
    if only in ('', 'cost'):
        cost = cost_of_ngrams(dls, folder, titles[:10_000], 2 * rounds)
        print('what n-grams cost beside a network 128 wide:', {e: round(c, 3) for e, c in cost.items()}, flush=True)
        save('ngrams_cost', dict(share=cost, rounds=2 * rounds, cores=usable_cores()))
    if only == 'cost': return
    for name in only.split(',') if only else [*networks, 'others']:
        contenders = others(df[:40_000], folder) if name == 'others' else engines(name, dls, folder)
        result[name] = measure(contenders, titles[:n_titles.get(name, 100_000)], titles[:50], rounds)
        print(name)
        for engine, row in result[name].items():
            print(f"  {engine:<24} {row['titles_per_second']:>9,.0f} titles/s  {row['of_fastest']:.2f} of the fastest  "
                  f"{row['one_title_ms']:6.1f} ms for one  {row['mb']:6.1f} MB", flush=True)
    if only: return
    save('predict', dict(rounds=rounds, networks=result, cores=usable_cores(),
                         mean_length=sum(map(len, titles)) / len(titles)))
