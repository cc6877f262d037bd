"""Extract features: plan, load and encode, write, summarise."""
