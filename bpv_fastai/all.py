"What a user or a tutorial calls, by one import."
import warnings

warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated')  # raised when fastai is imported

from fastai.learner import load_learner
from fastai.torch_core import set_seed

from .categorizer import Categorizer, OnnxCategorizer
from .data.catalog import catalog_report, plot_category_counts, plot_title_lengths, read_catalog, split_catalog
from .data.errors import CatalogError, CategorizerError, ResumeError, TrainingDiverged
from .data.samples import synthetic_catalog, usda_foods
from .data.titles import CategoryVocab, CharVocab
from .decide.calibration import ProbabilityCalibrator, plot_reliability
from .decide.coverage import coverage_curve, plot_coverage, threshold_for
from .decide.decider import Decider, judge_decisions
from .decide.metrics import CategoryCounts, category_report
from .decide.rules import ExpectedF1, F1Cutoffs
from .decide.taxonomy import path_scores
from .distill import distill
from .ensemble import Ensemble, snapshots
from .interpret import TitleInterpretation
from .learner import bpv_learner, linear_learner, ngram_learner, words_learner
from .models.pooling import PoolingLinearClassifier
from .train.callbacks import WeightedF1, WeightedPrecision, WeightedRecall, best_preds
from .train.loaders import TitleDataLoaders
from .train.recipe import Member, Recipe
from .train.resume import Checkpoints
from .use.baseline import linear_svm
from .use.compare import compare_models, other_contenders

__all__ = [name for name in globals() if not name.startswith('_') and name not in ('warnings',)]
