"""The exact codec: two tensors become a record, a record and a target become lanes.

One file for each record kind (`palette`, `arithmetic`, `sparse`, `planes`; `zero` has no bytes, `full` is a record that
replaces), `choose.py` that takes the smallest, `mend.py` for what one rounded difference cannot do, `frame.py` and
`record.py` for how it all lies in a pack. `docs/format.md` describes the bytes.
"""

from __future__ import annotations

from deltareg.codec.choose import Kind
from deltareg.codec.frame import (
    EncodedFrame,
    Frame,
    decode_frame,
    encode_difference,
    encode_replaced,
    encode_unchanged,
    replaced,
    zero_frame,
)
from deltareg.codec.lanes import FRAME_LANES, Array, Lane, lane_of
from deltareg.codec.reader import FrameRange, RecordReader
from deltareg.codec.record import Mode, RecordHead, frame_counts
from deltareg.codec.streams import Preset

__all__ = [
    "FRAME_LANES",
    "Array",
    "EncodedFrame",
    "Frame",
    "FrameRange",
    "Kind",
    "Lane",
    "Mode",
    "Preset",
    "RecordHead",
    "RecordReader",
    "decode_frame",
    "encode_difference",
    "encode_replaced",
    "encode_unchanged",
    "frame_counts",
    "lane_of",
    "replaced",
    "zero_frame",
]
