"""Frozen language models of transformers that read what a Q-Former found (BLIP-2, section 3.2)."""
