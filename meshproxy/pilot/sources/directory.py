"""Documents in the files of a directory: `*.yaml`, `*.yml` and `*.json`, also in directories below it.

It is watched by looking at it, so that renames, symbolic links (Kubernetes swaps that of a mounted ConfigMap) and
network file systems all count. A file that is being written is left alone until it has been quiet for one look.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from meshproxy.observe.log import get_logger
from meshproxy.pilot.documents.document import Identity, RawDocument, parse_document, split_documents
from meshproxy.pilot.documents.problems import Problem
from meshproxy.pilot.sources.source import RuleSet, SourceError, Write

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_INTERVAL_S: Final = 0.2

_Stamp = tuple[int, int, int, int]
