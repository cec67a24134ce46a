"Module names of version 0.0, kept for one version: `bpv_fastai.catalog` hands on what `bpv_fastai.data.catalog` has."
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

moved = {
    'baseline': ('use.baseline',),
    'calibration': ('decide.calibration',),
    'callbacks': ('data.errors', 'decide.decider', 'train.callbacks'),
    'catalog': ('data.errors', 'data.catalog', 'data.samples'),
    'dataloaders': ('train.loaders',),
    'decisions': ('decide.rules', 'decide.coverage', 'decide.decider'),
    'defaults': ('train.recipe',),
    'encoder': ('models.network',),
    'files': ('data.files', 'use.predict'),
    'label': ('cli.predict', 'cli.evaluate'),
    'lstm': ('models.lstm',),
    'members': ('models.inference', 'models.average', 'models.precision', 'ensemble'),
    'metrics': ('decide.metrics', 'decide.taxonomy'),
    'ngrams': ('models.ngrams',),
    'onnx': ('categorizer',),
    'pooling': ('models.pooling', 'models.network'),
    'probabilities': ('decide.probabilities',),
    'qrnn': ('models.qrnn',),
    'resume': ('data.errors', 'train.resume'),
    'sampler': ('data.sampler', 'models.inference'),
    'schedule': ('train.schedule',),
    'titles': ('data.titles',),
}


class MovedModules(MetaPathFinder, Loader):
    "Find a module by the name that it had, and fill it with the public names of the rooms that hold its code now"
    def find_spec(self, fullname, path, target=None):
        package, _, name = fullname.rpartition('.')
        return ModuleSpec(fullname, self) if package == __package__ and name in moved else None

    def create_module(self, spec): return None

    def exec_module(self, module):
        for room in moved[module.__name__.rpartition('.')[2]]:
            names = vars(import_module(f'{__package__}.{room}'))
            vars(module).update({name: names[name] for name in names['__all__']})


sys.meta_path.append(MovedModules())
