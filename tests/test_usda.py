"The real catalog, as the notebooks describe it."
import pytest

from bpv_fastai.data.catalog import catalog_report
from bpv_fastai.data.errors import CatalogError
from bpv_fastai.data.samples import usda_foods


def test_the_real_catalog():
    df = usda_foods(dedup=False)
    assert len(df) == 375_977 and df.category.nunique() == 416 and df.title.str.len().max() == 44
    once = usda_foods()
    assert once.title.is_unique and set(once.title) == set(df.title)
    most = df[df.title == df.title.value_counts().index[0]].category.value_counts()
    assert once.set_index('title').category[df.title.value_counts().index[0]] in most[most == most.max()].index
    assert catalog_report(once).source == 'USDA foods'


def test_without_the_package(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(CatalogError, match='pip install'): usda_foods()
