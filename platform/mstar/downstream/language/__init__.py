"""Tasks of vision and language: slides scored by text, found by text and RNA, learnt from a few.

options       what each method can be told
prompts       prompt files: classes as synonyms and templates
encoders      the text, slide and gene side of a stage-1 export, the projection of a stage-2 one
pooling       patch scores → slide scores: the mean, or the votes, of the best
zero_shot, retrieval, few_shot      the families that a sweep runs (`mstar.downstream.families`)
search_index, case_index            an index of cases, for `mstar retrieve` (`mstar.evidence`)
"""
