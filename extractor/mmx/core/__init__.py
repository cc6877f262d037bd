"""Pure array helpers of the extraction: arrays in, arrays out, no files."""
