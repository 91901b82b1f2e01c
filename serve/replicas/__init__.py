"""What a replica does beside answering, and what replicas tell each other."""
