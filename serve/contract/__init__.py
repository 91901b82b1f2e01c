"""The HTTP contract: what may be asked, what comes back, and the problems that an answer may be."""
