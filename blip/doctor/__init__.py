"""Checks of all that the verbs depend on and that is not theirs: this machine, and the services that it uses."""
