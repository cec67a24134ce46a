"The public names of all modules."
from .baseline import *
from .calibration import *
from .callbacks import *
from .catalog import *
from .dataloaders import *
from .decisions import *
from .encoder import *
from .interpret import *
from .learner import *
from .metrics import *
from .pooling import *
from .probabilities import *
from .sampler import *
from .schedule import *
from .titles import *
