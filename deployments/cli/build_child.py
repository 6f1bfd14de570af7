"""`python -m deployments.cli.build_child JOB`: fetches, builds or checks models and reports on stdout.

A process of its own, because building imports torch and fills a gigabyte of memory that the command line would
keep for as long as it stays.
"""

from __future__ import annotations

import errno
import os
import sys

import msgspec

from deployments.cli.build_messages import Building, BuildMessage, Built, Job, Refused
from deployments.cli.child import begin
from deployments.models.errors import ModelError
from deployments.models.sources import resolve, verify
from deployments.models.store import Progress


def main() -> int:
    """Work through the job; exit status 1 if a model could not be had, after trying all of them."""
    messages = begin()
    job = msgspec.json.decode(sys.argv[1], type=Job)

    def tell(message: BuildMessage) -> None:
        os.write(messages, msgspec.json.encode(message) + b"\n")

    def reporter(model: str) -> Progress:
        return lambda text, done: tell(Building(model, text, done))

    failed = False
    for model, source in job.sources.items():
        try:
            obtain = verify if job.verify else resolve
            path = obtain(source, None, reporter(model))
        except ModelError as error:
            failed = True
            tell(Refused(model, error.problem, error.remedy))
        except OSError as error:
            failed = True
            tell(Refused(model, f"its files cannot be written: {_said(error)}", _remedy(error)))
        else:
            tell(Built(model, str(path)))
    return 1 if failed else 0


def _said(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename is not None else ""
    return f"{error.strerror or type(error).__name__}{where}"


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space there, or name another folder with POINTSMAN_CACHE"
    return "Make that folder writable for this user, or name another one with POINTSMAN_CACHE"


if __name__ == "__main__":
    sys.exit(main())
