"""Starting processes: on this machine, or as jobs of a cluster."""
