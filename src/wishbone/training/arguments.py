"""`training_args.bin` of version 0.1.0 names its class by this module; here unpickling finds it.

transformers pickles a run's arguments beside every checkpoint, and a pickle holds the full name of the class.
"""

from wishbone.trainer.arguments import DPOConfig

__all__ = ["DPOConfig"]
