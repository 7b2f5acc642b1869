"""From a data set of preference pairs, however it is written, to batches of token ids.

formats, messages   what a row may look like, and the one shape it gets
files, rows, source where rows come from: files, directories, the hub, `datasets` objects, lists
encoding, tokenize  token ids, equal to TRL's
columns, inspect    what cannot teach, how long it is
packing, batch      rows of a training step
"""
