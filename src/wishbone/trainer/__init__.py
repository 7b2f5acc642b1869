"""The drop-in trainer: TRL's `DPOTrainer` with Wishbone's step, its arguments, and the patch."""
