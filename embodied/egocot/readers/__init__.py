"""Other layouts → records. All yield the good ones, and the bad ones go to a `Quarantine`.

    official.py   EgoCOT as published: `results.json` and `EGO_*.npy`
    planning.py   the plans in it
    lerobot.py    LeRobotDatasets recorded with plans, sub-goals and pixel labels
    columns.py    our own records as columns: pyarrow, and Hugging Face's `datasets`
    folder.py     a folder of the first kind or of ours

Our own records are read by `embodied.egocot.records.read_records`.
"""

from embodied.egocot.readers.columns import load_columns, load_with_datasets
from embodied.egocot.readers.folder import read_folder
from embodied.egocot.readers.lerobot import read_lerobot
from embodied.egocot.readers.official import read_official
from embodied.egocot.records import read_records

__all__ = [
    "load_columns",
    "load_with_datasets",
    "read_folder",
    "read_lerobot",
    "read_official",
    "read_records",
]
