"""placeholder"""
from __future__ import annotations
from collections.abc import Iterable, Mapping
from pathlib import Path
from deltareg.progress import SILENT, Progress
from blake3 import blake3
from deltareg.digest import canonical_json

def file_digests(root: Path, names: Iterable[str], threads: int, progress: Progress = SILENT) -> dict[str, str]:
    return {n: "blake3:" + blake3((root / n).read_bytes()).hexdigest() for n in names}

def output_digest(files: Mapping[str, tuple[int, str]]) -> str:
    return "blake3:" + blake3(canonical_json([[p, s, d] for p, (s, d) in sorted(files.items())])).hexdigest()
