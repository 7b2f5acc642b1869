#!/usr/bin/env python3
"""The configuration builder from the shell: the flags of `wishbone init`, and never a question.

python scripts/unsloth-dpo_tool.py --model MODEL --data DATA [--gpu GPU] [--target unsloth --format python] ...
"""

import sys

try:
    import typer

    from wishbone.cli.init import build
except ImportError as error:
    sys.exit(
        f"unsloth-dpo_tool: {error.name or error} cannot be imported. This tool needs Wishbone in the same Python:\n"
        "    pip install .        (in a clone of it)\n"
        "node scripts/unsloth-dpo_tool.js is the same tool and needs nothing but Node."
    )

if __name__ == "__main__":
    tool = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    tool.command()(build)
    tool()
