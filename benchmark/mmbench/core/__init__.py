"""Pure numerics that models, metrics, training and evaluation share: no files, no printing."""
