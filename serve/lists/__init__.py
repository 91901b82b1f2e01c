"""From a request to its list: checks, the queue of the decoder, ranking, pages, similar items, experiments."""
