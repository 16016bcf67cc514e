"""Old checkpoints make room for new ones."""

import os
import shutil

from tinkertools.files import explain_os_errors, sync_directory
from tinkertools.runs.directory import RunDirectory

_ASIDE = ".gone-"


def keep_newest(run: RunDirectory, count: int, spare: int | None = None) -> None:
    """Remove all step checkpoints of a run but the newest `count` and that of step `spare`; none where `count` is 0.

    Each gets out of sight in one step before its files go, so that what is half removed is no checkpoint.

    Raises:
        FileError: the file system refuses.
    """
    if not count:
        return
    with explain_os_errors(run.path):
        for step, folder in run.checkpoints()[:-count]:
            if step == spare:
                continue
            folder.replace(folder.with_name(f".{folder.name}{_ASIDE}{os.getpid()}"))
            sync_directory(run.path)
        # Those too that a process left which was killed between the two.
        for gone in run.path.glob(f".*{_ASIDE}*"):
            shutil.rmtree(gone)
