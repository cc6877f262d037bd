"""The commands of mmbench, one module each; imported when they are called."""
