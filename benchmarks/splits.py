"Titles of the benchmarks: splits of USDA titles, loaders over them, and the judge on the test titles."
import numpy as np, pandas as pd

from bpv_fastai.data.catalog import read_catalog, title_keys
from bpv_fastai.data.samples import usda_foods
from bpv_fastai.data.titles import CategoryVocab
from bpv_fastai.train.loaders import TitleDataLoaders
from catalogs import labelled_titles
from common import weighted_f1

# of benchmarks/paper.py: titles (0: all), width, batch, (epochs, rate) of short and long trainings, networks of a kind
paper_scales = dict(
    small=dict(rows=32_000, nh=128, bs=128, short=(8, 1.), long=(16, .8), seeds=5),
    medium=dict(rows=0, nh=128, bs=128, long=(8, 1.), seeds=1),
    full=dict(rows=0, nh=512, bs=256, short=(20, 1.), long=(40, .8), seeds=5))


def paper_catalog(scale: dict) -> pd.DataFrame:
    "Return the titles of a scale"
    df = usda_foods()
    if scale['rows']: df = df.sample(scale['rows'], random_state=42)
    return read_catalog(df.reset_index(drop=True), verbose=False)


def usda_split(n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Draw `n` training, a third as many validation (at most 20,000) and 20,000 test titles, each title once.

    Validation and test titles have categories that training titles have. Those with a copy in an earlier part, which
    differs in case, space or punctuation, are left out."""
    n_valid = min(n // 3, 20_000)
    df = usda_foods().sample(n + n_valid + 20_000, random_state=seed).reset_index(drop=True)
    part = np.repeat([0, 1, 2], [n, n_valid, 20_000])
    is_new = part == pd.Series(part).groupby(title_keys(df['title'])).transform('min').to_numpy()
    df, part = df[is_new], part[is_new]
    train, valid, test = (df[part == i] for i in range(3))
    known = set(train['category'])
    return train, valid[valid['category'].isin(known)], test[test['category'].isin(known)]


def labelled_split(catalog: str, n: int, seed: int, by: str = '') -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw `n` labelled titles (or all) and test titles, 8,000 (USDA: 20,000) or a quarter, in their categories.

    Without `by` they are drawn at random. With a column, 'supplier', or 'first word', no group of it has titles on both
    sides: test titles come from elsewhere, as those of a new supplier do. The column is then `group`, too."""
    if catalog == 'usda' and not by: return usda_split(n, seed)[::2]
    df = one_of_copies(usda_foods()) if catalog == 'usda' else labelled_titles(catalog)
    df = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    n_test = min(8_000, len(df) // 4)
    if by:
        groups = df['title'].str.split().str[0].str.lower() if by == 'first word' else df[by]
        df = df.assign(group=groups)[groups.notna()]
        groups = df['group']
        sizes = groups.value_counts().loc[groups.unique()]  # in a random order
        in_test = groups.isin(sizes.index[sizes.cumsum() <= min(n_test, len(df) // 4)])
        train, test = df[~in_test][:n], df[in_test]
    else: train, test = df[n_test:][:n], df[:n_test]
    return train, test[test['category'].isin(set(train['category']))]


def one_of_copies(df: pd.DataFrame) -> pd.DataFrame:
    "Leave out titles with an earlier copy, which may differ in case, space or punctuation"
    return df[~pd.Series(title_keys(df['title']), df.index).duplicated()]


def loaders(train: pd.DataFrame, other: pd.DataFrame, seed: int, bs: int = 128) -> TitleDataLoaders:
    "Return loaders that train on some titles and validate on others"
    df = pd.concat([train.assign(is_valid=False), other.assign(is_valid=True)], ignore_index=True)
    return TitleDataLoaders.from_df(df, valid_col='is_valid', bs=bs, val_bs=256, seed=seed, verbose=False)


class Judge:
    "Compute the weighted F1 of predicted category names on the test titles"
    def __init__(self, test: pd.DataFrame):
        self.vocab, self.test = CategoryVocab.fit(test['category']), test

    def __call__(self, categories) -> float:
        targs, preds = self.vocab.encode(self.test['category']), self.vocab.encode(categories)
        preds[preds < 0] = len(self.vocab)  # a category that no test title has is wrong, whichever it is
        return weighted_f1(targs, preds, len(self.vocab) + 1)


class Characters:
    "Tokenize for fastai: every character is a token"
    def __call__(self, items): return (list(t) for t in items)


def fastai_loaders(df: pd.DataFrame, valid_col: str, bs: int, device: str = 'cpu'):
    "Return loaders of fastai's text pipeline, in this process, with a token for each character"
    from fastai.text.all import CategoryBlock, ColReader, ColSplitter, DataBlock, TextBlock
    text = TextBlock.from_df('title', tok=Characters(), rules=[])
    block = DataBlock((text, CategoryBlock), get_x=ColReader('text'), get_y=ColReader('category'),
                      splitter=ColSplitter(valid_col))
    return block.dataloaders(df, bs=bs, num_workers=0, device=device)
