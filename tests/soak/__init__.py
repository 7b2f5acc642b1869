"""Programs that disturb Wishbone, at random and for long: `make soak`.

`python -m soak --help`, in tests/, damages what Wishbone reads; `python -m soak.kills --help` kills runs.

damage     bytes and JSON values, changed at random
targets    what a target is: it writes a damaged file and reads it as a run would
pair_files, gguf_files, run_configs, run_directories, store_files    the targets
kills      runs that are killed and continued
launched   runs of two processes that are stopped, killed and continued
trials     a case in a process of its own, with bounds on time and memory, and what came of it
"""
