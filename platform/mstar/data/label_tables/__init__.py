"""Label tables in the dialects of the field, read into samples of a task.

samples       what a sample is, and a table of them
dialects      which dialect a table is in, and the reader of each
authors       the mSTAR authors' tables: classification, survival, multimodal
clam          CLAM: one row a slide, parts in `splits_<k>.csv`
patho_bench   Patho-Bench: one row a slide, `fold_<k>` columns, classes in `config.yaml`
grouping      rows → samples, with class codes from the task row
matching      slide ids of a table → slide ids of a feature store
The dialects are described in platform/docs/tasks.md.
"""

from mstar.data.label_tables.grouping import read_label_table
from mstar.data.label_tables.matching import Match, match_slides
from mstar.data.label_tables.samples import LabelTable, Sample

__all__ = ["LabelTable", "Match", "Sample", "match_slides", "read_label_table"]
