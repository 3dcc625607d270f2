"""From a task's calls to a frozen, digest-named data set whose labels are the teacher's answers."""

from trainers.datasets.freeze import EmptyDataset, freeze
from trainers.datasets.labels import Example
from trainers.datasets.versions import DatasetCorrupt, DatasetVersion, find_dataset, read_split

__all__ = [
    "DatasetCorrupt",
    "DatasetVersion",
    "EmptyDataset",
    "Example",
    "find_dataset",
    "freeze",
    "read_split",
]
