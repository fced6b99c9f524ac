"""Evaluation of a model on a data set: any number of workers predict its shards, then one process scores them."""
