"""One module per outside system.  Foreign errors are renamed here to those of `tlt_operator.errors`."""
