"""Who is trained on, who is held out: the split registry, further splits, and leak validators.

stratify   cases → parts, from ids and a seed alone
registry   the split registry of a cohort: part and pretraining flag of every case, with a digest
preset     how the registry of the method is made (`--preset mstar`)
held_out   label tables of tasks, read for the patients they validate or test on
schemes    further splits: by survival or label, k-fold, leave-one-site-out, external
leaks      validators: what must never be, as SplitErrors that name the ids
frozen     a split on disk: table + JSON with the digest, never overwritten silently
"""
