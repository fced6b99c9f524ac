"""One sentence each: thin KFP components that call one function of `blip.runs`."""
