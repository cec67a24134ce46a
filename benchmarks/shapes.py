"""`bpv_train` with nothing said but the file, on synthetic catalogs of several shapes: does it train, and beside the linear model?

    python benchmarks/shapes.py                            # an hour and a half on two cores, most of it for the largest
    python benchmarks/shapes.py --shapes 27000x600

A quarter of the titles judges. Shapes that were run before are kept in the result."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import results, save
from fastcore.script import call_parse

from bpv_fastai.all import *


def trained(titles: int, categories: int) -> dict:
    "What the command writes in its report"
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder)/'catalog.tsv'
        synthetic_catalog(titles, categories).to_csv(catalog, sep='\t', index=False, quoting=3)
        subprocess.run([Path(sys.executable).parent/'bpv_train', catalog, '--out', f'{folder}/model'], check=True, stdout=sys.stdout)
        report = json.loads((Path(folder)/'model'/'report.json').read_text())
    return {k: report[k] for k in ('rows', 'categories', 'predicted_categories', 'cell', 'nh', 'epochs', 'bs', 'lr', 'f1', 'decided_f1', 'linear_f1', 'train_seconds', 'linear_seconds')} | dict(
        valid_losses={m['direction']: m['valid_loss'] for m in report['members']})


@call_parse
def main(
    shapes: str = '27000x600,48000x130,190000x1700', # titles x categories
):
    "Train, save"
    found = json.loads((results/'shapes.json').read_text())['shapes'] if (results/'shapes.json').exists() else {}
    for shape in shapes.split(','):
        found[shape] = trained(*map(int, shape.split('x')))
        print(shape, found[shape], flush=True)
        save('shapes', dict(shapes=found))
