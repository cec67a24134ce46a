"The public names of all modules, and what loads an exported learner."
import warnings

warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated')  # said by newer PyTorch at fastai's import

from fastai.learner import load_learner
from fastai.torch_core import set_seed

from .baseline import *
from .calibration import *
from .callbacks import *
from .catalog import *
from .categorizer import *
from .dataloaders import *
from .decisions import *
from .defaults import *
from .encoder import *
from .ensemble import *
from .files import *
from .interpret import *
from .learner import *
from .lstm import *
from .members import *
from .metrics import *
from .ngrams import *
from .onnx import *
from .pooling import *
from .probabilities import *
from .qrnn import *
from .resume import *
from .sampler import *
from .schedule import *
from .titles import *
