"""A page of users' histories, recommended items and the items' nearest neighbours."""
