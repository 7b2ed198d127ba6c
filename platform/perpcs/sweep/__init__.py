"""Sweeps without Ray: what is varied, which settings come out equal, and what the finished ones say."""
