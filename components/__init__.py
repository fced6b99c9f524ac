"""KFP components, each a thin wrapper of one function of `blip.runs`."""
