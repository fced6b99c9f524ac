"""Jobs over the shards of a data set, processed by any number of workers that may join and leave at any time."""
