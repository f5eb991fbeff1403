"""Jobs that make and check cohorts: folders whose tables join slides, reports and expression.

build     slides, reports, expression and a clinical table → a cohort folder
generate  nothing → a small cohort whose truth is known
split     a cohort → the registry of who may be trained on
check     a cohort → counts, and every problem found
"""
