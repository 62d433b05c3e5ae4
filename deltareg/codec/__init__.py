"""The exact codec: two tensors become a record, a record and a target become lanes.

One file for each record kind (`palette`, `arithmetic`, `sparse`, `planes`; `zero` has no bytes, `full` is a record that
replaces; `lowrank` is the product of two factors), `choose.py` that takes the smallest, `mend.py` for what one rounded
difference cannot do, `frame.py` and `record.py` for how it all lies in a pack. `docs/format.md` describes the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltareg.lazy import lazily

if TYPE_CHECKING:
    from deltareg.codec.choose import Kind
    from deltareg.codec.frame import (
        EncodedFrame,
        Frame,
        decode_frame,
        encode_difference,
        encode_given,
        encode_replaced,
        encode_unchanged,
        replaced,
        zero_frame,
    )
    from deltareg.codec.lanes import DELTA_DTYPES, FRAME_LANES, Array, Lane, delta_lane_of, is_additive, lane_of
    from deltareg.codec.lowrank import FACTOR_DTYPES, Factors, LowRank, LowRankTensor, Product
    from deltareg.codec.reader import FrameRange, RecordReader
    from deltareg.codec.record import Mode, RecordHead, frame_counts
    from deltareg.codec.streams import Preset

__all__ = [
    "DELTA_DTYPES",
    "FACTOR_DTYPES",
    "FRAME_LANES",
    "Array",
    "EncodedFrame",
    "Factors",
    "Frame",
    "FrameRange",
    "Kind",
    "Lane",
    "LowRank",
    "LowRankTensor",
    "Mode",
    "Preset",
    "Product",
    "RecordHead",
    "RecordReader",
    "decode_frame",
    "delta_lane_of",
    "encode_difference",
    "encode_given",
    "encode_replaced",
    "encode_unchanged",
    "frame_counts",
    "is_additive",
    "lane_of",
    "replaced",
    "zero_frame",
]

_HOMES = {
    "Array": "deltareg.codec.lanes",
    "EncodedFrame": "deltareg.codec.frame",
    "DELTA_DTYPES": "deltareg.codec.lanes",
    "FACTOR_DTYPES": "deltareg.codec.lowrank",
    "FRAME_LANES": "deltareg.codec.lanes",
    "Factors": "deltareg.codec.lowrank",
    "Frame": "deltareg.codec.frame",
    "FrameRange": "deltareg.codec.reader",
    "Kind": "deltareg.codec.choose",
    "Lane": "deltareg.codec.lanes",
    "LowRank": "deltareg.codec.lowrank",
    "LowRankTensor": "deltareg.codec.lowrank",
    "Mode": "deltareg.codec.record",
    "Preset": "deltareg.codec.streams",
    "Product": "deltareg.codec.lowrank",
    "RecordHead": "deltareg.codec.record",
    "RecordReader": "deltareg.codec.reader",
    "decode_frame": "deltareg.codec.frame",
    "delta_lane_of": "deltareg.codec.lanes",
    "encode_difference": "deltareg.codec.frame",
    "encode_given": "deltareg.codec.frame",
    "encode_replaced": "deltareg.codec.frame",
    "encode_unchanged": "deltareg.codec.frame",
    "frame_counts": "deltareg.codec.record",
    "is_additive": "deltareg.codec.lanes",
    "lane_of": "deltareg.codec.lanes",
    "replaced": "deltareg.codec.frame",
    "zero_frame": "deltareg.codec.frame",
}


# Loaded on first use: what only asks for the kinds of lanes does not wait for compiled loops.
__getattr__ = lazily(__name__, _HOMES)
