"""Pages, charts and tables of what the verbs found. Nothing here trains or predicts."""
