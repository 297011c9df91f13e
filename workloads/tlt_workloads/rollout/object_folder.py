"""A revision's folder in an object store: asked for its size first, then read in pieces and never beyond that size.

Objects may be exchanged between two pieces; the digest of the bytes in memory then tells.  Each call of the store has
a deadline, and so has the whole file, so that a store which trickles does not keep a thread for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tlt_workloads.contract import DrafterRefusal
from tlt_workloads.rollout.revision_folder import MissingFileError, RefusedDrafterError, too_large
from tlt_workloads.store import StoreError, StoreProblem, open_store, store_problem

PIECE = 8 << 20  # bytes asked for at a time
CALL_LIMIT = 20.0  # seconds for one call of the store
FILE_LIMIT = 240.0  # seconds for a file; the pod waits a little longer for all of a revision


@dataclass(frozen=True)
class ObjectFolder:
    """A folder by its URL, which holds neither credentials nor options."""

    url: str

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    def read(self, name: str, *, most: int) -> bytes:
        """The whole object; see `RevisionFolder`."""
        where, began = f"{self.url}/{name}", time.monotonic()
        with _refusing(where):
            store = open_store(self.url)
            size = store.size(name, within=CALL_LIMIT)
            if size > most:
                raise too_large(where, size=size, most=most)
            data = bytearray()
            while len(data) < size:
                if time.monotonic() - began > FILE_LIMIT:
                    raise TimeoutError
                piece = store.read(name, start=len(data), stop=min(len(data) + PIECE, size), within=CALL_LIMIT)
                if not piece:
                    break  # shorter than it was; digest and frame tell what is missing
                data += piece
            if len(data) > size:
                raise too_large(where, size=len(data), most=size)
            return bytes(data)


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Says of a store's failure what it means.  Its own words stay out: they may hold addresses and keys."""
    try:
        yield
    except RefusedDrafterError:
        raise
    except StoreError as error:
        raise RefusedDrafterError(DrafterRefusal.UNREADABLE, str(error)) from error
    except FileNotFoundError as error:
        raise MissingFileError(f"{where} is not in the store, which was asked and answered") from error
    except IsADirectoryError as error:
        raise RefusedDrafterError(DrafterRefusal.NOT_A_FILE, f"{where} is a folder") from error
    except Exception as error:
        problem = store_problem(error)
        denied = problem is StoreProblem.DENIED
        reason = DrafterRefusal.UNREADABLE if denied else DrafterRefusal.STORE_UNAVAILABLE
        again = "" if denied else "; ask again when it is back"
        raise RefusedDrafterError(reason, f"{where}: {problem.value} ({type(error).__name__}){again}") from error
