"""Evaluation of a model on a data set, shard by shard, by any number of workers."""
