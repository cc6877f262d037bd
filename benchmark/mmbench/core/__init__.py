"""Numerics that models, metrics, training and evaluation share, and the settings of the process: no data files, no printing."""
