"""`bpv_train` with its defaults, on synthetic catalogs of several shapes: does it train, and how does it compare with
the linear model?

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

from bpv_fastai.data.samples import synthetic_catalog

columns = ('rows', 'categories', 'predicted_categories', 'cell', 'nh', 'epochs', 'bs', 'lr', 'f1', 'decided_f1',
           'linear_f1', 'train_seconds', 'linear_seconds')


def trained(titles: int, categories: int) -> dict:
    "Run the command. Returns what it writes in its report"
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder)/'catalog.tsv'
        synthetic_catalog(titles, categories).to_csv(catalog, sep='\t', index=False, quoting=3)
        bpv_train = Path(sys.executable).parent/'bpv_train'
        subprocess.run([bpv_train, catalog, '--out', f'{folder}/model'], check=True, stdout=sys.stdout)
        report = json.loads((Path(folder)/'model'/'report.json').read_text())
    valid_losses = {member['direction']: member['valid_loss'] for member in report['members']}
    return {name: report[name] for name in columns} | dict(valid_losses=valid_losses)


@call_parse
def main(
    shapes: str = '27000x600,48000x130,190000x1700', # titles x categories
):
    "Train, save"
    path = results/'shapes.json'
    reports = json.loads(path.read_text())['shapes'] if path.exists() else {}
    for shape in shapes.split(','):
        reports[shape] = trained(*map(int, shape.split('x')))
        print(shape, reports[shape], flush=True)
        save('shapes', dict(shapes=reports))
