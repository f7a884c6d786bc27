"""Training data: levelled or instruction shards in, padded micro-batches out.

- `shards`: a dataset's rows by number, with bounded memory; what must hold of it.
- `index`: one look at every row: length, modality, side of the validation split.
- `order`: which rows make which global batch, from a seed; where a run stands.
- `conversation`: the turns of a row, checked.
- `templates`: a conversation as text, and which characters the model is to learn.
- `encode`: that text as ids and labels.
- `pictures`: bytes of a picture as an RGB image.
- `samples`: a row as a sample, or the reason why not.
- `loader`: worker processes that turn planned batches into tensors.
- `collate`: samples as the tensors of a micro-batch.

Together, on rank 0 of 2:

    shards = ShardedDataset("data/demo/bucket", levels=8)
    index = read_index(shards)
    order = GlobalBatchSampler.of(shards, index, index.train_rows(0.02), global_size=32, seed=0)
    loader = Loader(shards, preparation, RankSlice(micro_size=8, rank=0, ranks=2), workers=2)
    for batch in loader.batches(order.plan(Position(), order.position(100))):
        ...
"""
