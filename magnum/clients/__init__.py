"""One outside wire each; foreign errors become ours here, once."""
