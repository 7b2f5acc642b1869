"""The layouts of preference pairs in data sets, and the one that all become: prompt, chosen, rejected.

`recognize` finds the layout of a row from its columns and the types of its values, `read_pairs` rewrites the row as
pairs. A pair is either three texts or three lists of chat messages:

    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    {"prompt": [{"role": "user", "content": ...}], "chosen": [{"role": "assistant", "content": ...}], "rejected": ...}

Texts stay texts; conversations become messages (the chat template of the model writes the turns). Without a column for
the prompt, it is the common beginning of `chosen` and `rejected`. A row with scored or ranked completions becomes any
number of pairs (`PairRule`).

layouts          the table of layouts
fields           the columns of one row
paired, judged   how each layout is read: with chosen and rejected, or with scores, ranks and labels
prompt, pairing  the prompt of a pair, and which completions become one
rewrite          from a row to its pairs
recognize        the layout of a row, and what is not read
"""

from wishbone.data.formats.layouts import FORMATS
from wishbone.data.formats.pairing import PairRule, Pairs
from wishbone.data.formats.prompt import common_prompt
from wishbone.data.formats.recognize import columns_to_read, recognize, renamed
from wishbone.data.formats.rewrite import read_pairs

__all__ = [
    "FORMATS",
    "PairRule",
    "Pairs",
    "columns_to_read",
    "common_prompt",
    "read_pairs",
    "recognize",
    "renamed",
]
