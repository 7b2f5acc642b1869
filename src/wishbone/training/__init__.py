"""Where version 0.1.0 had the trainer; what is left is the name that its pickled files know."""
