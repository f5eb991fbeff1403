"""Cases and what belongs to them: tables, reports, gene expression, splits, bags of features.

tables    text tables of any origin, read strictly: errors name file, row and column
cases     the case table that joins slides, report and expression of a patient
Nothing here knows Ray or MLflow.
"""
