"""Pretraining: stage 1 aligns slide, report and expression; stage 2 teaches the patch encoder.

Stage 1, one file a step: `stage1_config` (what was asked) → `stage1_cases` (which cases train, and
what is wrong with the others) → `batch_plan` and `stage1_batches` (what trains together) →
`cached_step` (one optimiser step) → `stage1_validate` → `stage1` (the job).
"""
