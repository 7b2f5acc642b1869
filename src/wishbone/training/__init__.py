"""The trainer's place in version 0.1.0; keeps the one name that its pickled files need."""
