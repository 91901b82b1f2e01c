"""The catalogue of a version: what is read of a run, what changes while it is served, and how it is looked at."""
