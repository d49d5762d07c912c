"""Episode ↔ LeRobotDataset v3.0, the format that `lerobot` 0.4.4 and newer reads.

What is written, under the data set's root:

    meta/info.json        features, fps, counts; under "embodied" what is ours
    meta/stats.json       per feature min, max, mean, std, count and quantiles
    meta/tasks.parquet    the instructions
    meta/episodes/…       one row an episode: where its rows and frames are, its statistics, and
                          ours: env_id, task, seed, layout_sha, instruction, outcome, tag, plan and
                          info (JSON), and `language_persistent` in LeRobot's own row type
    data/…                one row a control step, one row group an episode
    videos/<camera>/…     H.264, episodes end to end

`language_persistent` is in meta/episodes because lerobot 0.4.4 refuses it as a column of data.
`observation.pixels.<camera>` holds x and y of each noun in 0..1 of the picture, NaN where it was
not given. It has no statistics, and neither have the running numbers.

While recording, whole episodes wait as folders in `.shards`; `close` moves them into the data set
and writes meta/info.json last. Whatever the moment of a crash, nothing half-written is ever seen.

Where it is done:

    writer.py     DatasetWriter: records; shards.py is an episode's way from memory to the data set
    reader.py     DatasetReader: reads; checks.py is what must be right before anything is read
    merging.py    merge: data sets put together
    info.py       meta/info.json: the features
    rows.py       meta/episodes: an episode's row, and EpisodeMeta, what is known from it
    meta.py       the rest of meta/, for all episodes together; stats.py reckons the statistics
    columns.py    data/…: an episode's steps ↔ arrays; tables.py: arrays ↔ Parquet
    places.py     which file holds which episode
    files.py      JSON and Parquet files, and DatasetError
"""

from embodied.episodes.files import DatasetError
from embodied.episodes.merging import merge
from embodied.episodes.reader import DatasetReader
from embodied.episodes.rows import EpisodeMeta
from embodied.episodes.writer import DatasetWriter

__all__ = ["DatasetError", "DatasetReader", "DatasetWriter", "EpisodeMeta", "merge"]
