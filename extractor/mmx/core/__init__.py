"""Helpers of the extraction, arrays in and arrays out, and the settings of the process: no data files."""
