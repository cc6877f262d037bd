"""Where batches run; never what they compute."""
