"""mmstore: the on-disk feature format that mmx writes and mmbench reads."""
