"""A local page of runs while they train: what no tracker shows, from the files of their directories alone."""
