"""Training data: levelled or instruction shards in, padded micro-batches out.

- `dataset`: a dataset's rows by number, with bounded memory.
- `index`: one pass over all rows: length, modality, side of the validation split.
- `sampler`: the rows of each global batch, from a seed; the position of a run.
- `loader`: worker processes that turn planned batches into tensors, row by row.

Together, on rank 0 of 2:

    shards = ShardedDataset("data/demo/bucket", levels=8)
    index = read_index(shards)
    sampler = GlobalBatchSampler.of(
        shards, index, index.train_rows(0.02), global_size=32, seed=0
    )
    rank_slice = RankSlice(micro_size=8, rank=0, ranks=2)
    loader = Loader(shards, preparation, rank_slice, workers=2)
    for batch in loader.batches(sampler.plan(Position(), sampler.position(100))):
        ...
"""
