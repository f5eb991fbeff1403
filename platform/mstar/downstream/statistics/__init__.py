"""Statistics of stored predictions: metrics, intervals, comparisons, survival curves.

Pure numpy and scipy, no model and no cluster: everything here can be computed again, offline, from
the prediction files. The choices and their sources are in `platform/docs/statistics.md`.
"""
