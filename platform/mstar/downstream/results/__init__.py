"""`mstar results`: tables, comparisons and one static page from stored predictions.

sources.py, mlflow_source.py   prediction files of folders or of MLflow
estimates.py                   each row's metrics, each pair's difference
rows.py                        rank, significance, marks
across.py                      methods over tasks: averages, ranks, contrasts
tables.py, text_tables.py      CSV, Parquet, LaTeX, Markdown
page*.py, svg*.py, page.css, page.js   the page
job.py                         all of it
"""
