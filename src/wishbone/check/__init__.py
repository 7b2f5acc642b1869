"""What a data set of preference pairs would teach, and what would spoil it: read once, row by row.

Of each pair stay two hashes, three lengths and its faults (about 40 bytes), never its texts, so a file may be larger
than memory.

kinds            the faults that are looked for: why each hurts, and what to do
written          a pair as the texts that are compared and shown
pair_faults      faults that one pair shows by itself
special_tokens   tokens of chat templates inside the texts
places, ledger   what is kept of each pair, and what is found by comparing pairs with each other
lengths          the lengths of all pairs as small histograms, and what a limit would cut
model_view       pairs as token ids of a model
sample           the pairs that a person may look at
examine          the one pass over the data
cleaned          a copy without the faults
page             the same as one HTML page
"""
