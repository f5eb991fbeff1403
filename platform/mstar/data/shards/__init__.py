"""Patch shards: pixels, target and identity of every patch, globally shuffled, in Parquet.

format    the schema of a shard, and `index.json`, which says what there is
pixels    from a slide's patch to the JPEG bytes that are stored: passed through, or encoded once
buckets   pass 1 of the shuffle: rows of a few slides, sorted by hash, in one file
writer    pass 2: one bucket of the hash, from all those files, into shards
check     what `mstar shards check` looks at
preview   a sheet of random rows
The format is described in platform/docs/shards.md.
"""
