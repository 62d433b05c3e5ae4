"""Reading and writing checkpoints: safetensors headers, where files come from, tensors by byte ranges."""

from __future__ import annotations

from deltareg.checkpoint.dtypes import DTYPES, Dtype, dtype_of
from deltareg.checkpoint.header import MAX_HEADER, Header, TensorInfo, encode_header, lay_out, read_header
from deltareg.checkpoint.hub import Hub, HubFolder, HubName, HubSource, parse_hub_name
from deltareg.checkpoint.layout import ShardIndex, Weights, find_weights
from deltareg.checkpoint.locate import Located, locate
from deltareg.checkpoint.memory import MemoryTensor, checkpoint_of, described_checkpoint
from deltareg.checkpoint.reader import Checkpoint, Shard, Tensor
from deltareg.checkpoint.source import ByteSource, FileSource, Folder, LocalFolder
from deltareg.checkpoint.writer import CheckpointWriter, Job, Member, Seal, ShardPlan

__all__ = [
    "DTYPES",
    "MAX_HEADER",
    "ByteSource",
    "Checkpoint",
    "CheckpointWriter",
    "Dtype",
    "FileSource",
    "Folder",
    "Header",
    "Hub",
    "HubFolder",
    "HubName",
    "HubSource",
    "Job",
    "LocalFolder",
    "Located",
    "Member",
    "MemoryTensor",
    "Seal",
    "Shard",
    "ShardIndex",
    "ShardPlan",
    "Tensor",
    "TensorInfo",
    "Weights",
    "checkpoint_of",
    "described_checkpoint",
    "dtype_of",
    "encode_header",
    "find_weights",
    "lay_out",
    "locate",
    "parse_hub_name",
    "read_header",
]
