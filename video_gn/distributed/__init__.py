"""The ranks of a run and what they share: rendezvous, signals, precision, profile."""
