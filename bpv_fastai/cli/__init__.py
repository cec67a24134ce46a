from importlib import import_module


def __getattr__(name):
    "Hand on `bpv_train` and `bpv_demo`, which this module held in version 0.0, for one version"
    if name in ('bpv_train', 'bpv_demo'): return getattr(import_module(f'.{name[4:]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
