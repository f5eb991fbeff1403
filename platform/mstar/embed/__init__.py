"""The grid and embedding jobs: slides in, grids and patch features out, on Ray Data.

The path of a slide, one file a step: `config` (what was asked) → `plan` (bundles of pending slides)
→ `pipeline` (Ray Data hands bundles to workers) → `worker` (reads, packs, encodes, writes) →
`mstar.training.custody` (who works on the slide, and what became of it). `job` and `grid_job` are
the entries.
"""
