"""From a data set of preference pairs, in any of nine layouts, to batches of token ids.

formats, messages   the layouts of a row, and the one that all become
files, rows, source where rows come from: files, directories, the hub, `datasets` objects, lists
encoding, tokenize  token ids, equal to TRL's
columns, inspect    pairs that teach nothing, and lengths
packing, batch      rows of a training step
"""
