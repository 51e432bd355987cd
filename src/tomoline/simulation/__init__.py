"""Simulated tomograms with truth: phantom, projection, reconstruction, data sets."""
