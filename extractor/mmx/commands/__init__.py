"""The commands of mmx, one module each, imported when they are called."""
