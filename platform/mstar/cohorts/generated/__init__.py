"""A generated cohort with a known truth: latent factors that show in slides, reports and RNA.

`config` (what was asked) → `factors` (what is true of a case) → `paint` and `svs` (slides),
`reports`, `expression`, `survival`, `labels` → `truth` (the truth, written beside it).
"""
