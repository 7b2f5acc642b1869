"""From a data set of preference pairs, in any layout that public data sets have, to batches of token ids.

messages, written_values      the spellings of a message, and cells that write them as text
formats                       the layouts of a row, and the one that all become
opened_files, files, source   where rows come from: files, directories, the hub, `datasets` objects, lists
row_reader, rows              numbered rows to pairs, and pairs stored as Arrow
encoding, tokenize            token ids, equal to TRL's
columns, inspect              pairs that teach nothing, and lengths
packing, batch                rows of a training step
"""
