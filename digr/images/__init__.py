"""Images of items: which addresses may be read, how they are fetched and decoded within bounds, and what a model is shown."""
