__version__ = "0.1.0"

import os, sys

# OpenMP's threads wait for each other by asking again and again. Two processes that do so on the same cores slow each
# other many times over, and threads that sleep at once are slower alone; benchmarks/threads.py has both. So GNU's
# OpenMP, PyTorch's on Linux, asks 2,000 times here; others sleep at once. OpenMP reads this when PyTorch is imported.
# Where that has happened it stays unset, and `BusyCores` may warn in a fit.
if 'torch' not in sys.modules and 'OMP_WAIT_POLICY' not in os.environ:
    os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'
    os.environ.setdefault('GOMP_SPINCOUNT', '2000')

from . import moved
