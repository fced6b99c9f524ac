"""Work on shards by any number of workers that come and go."""
