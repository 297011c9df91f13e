"""The public objects and words of group `tlt.dev`: what users write, read and select by.  Pure data."""
