__version__ = "0.1.0"

import os, sys

# OpenMP's threads wait for each other by asking again and again. Two processes that do so on the same cores slow each
# other many times over; threads that sleep while they wait do not (benchmarks/threads.py). OpenMP reads this variable
# when PyTorch is imported. Where that has happened it stays unset, and `BusyCores` may warn in a fit.
if 'torch' not in sys.modules: os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from . import moved
