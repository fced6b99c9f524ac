"""Makes a task better: engine, loop, optimizer and checkpoints."""
