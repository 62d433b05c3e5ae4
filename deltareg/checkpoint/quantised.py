"""Checkpoints whose weights are codes with scales: scaled 8-bit floats are read as bfloat16, the rest is refused.

A difference of codes is no difference of weights: the same code stands for another number under another scale.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from deltareg.checkpoint.header import TensorInfo
from deltareg.checkpoint.source import ByteSource, bytes_of
from deltareg.errors import BadCheckpoint, QuantisedRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deltareg.checkpoint.source import Buffer

__all__ = ["Presented", "present", "refuse_gguf"]

_CONFIG_KEY = "quantization_config"
_SCALE = "_scale_inv"
_ACTIVATION_SCALES = (".input_scale", ".activation_scale")
_BLOCK = (128, 128)
_LARGEST_BLOCK = 1 << 20
_SCALE_WIDTHS = {"F32": 4, "BF16": 2}
_CODE_DTYPES = frozenset({"I8", "U8", "I32", "U32", "F4", "F8_E4M3", "F8_E5M2", "F8_E8M0"})
_SHOWN = 3
_CAUSE = "the same code stands for another number under another scale"

_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "mxfp4": "MXFP4",
    "compressed-tensors": "compressed-tensors",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "torchao": "torchao",
    "fbgemm_fp8": "FBGEMM FP8",
}
# The last parts of tensors' names, where a config does not say or is not there.
_TRACES: Sequence[tuple[str, Set[str]]] = (
    ("gptq", {"qweight"}),
    ("bitsandbytes", {"absmax", "quant_map", "SCB", "bitsandbytes__nf4", "bitsandbytes__fp4"}),
    ("compressed-tensors", {"weight_packed"}),
    ("hqq", {"W_q"}),
)


@dataclass(frozen=True)
class Presented:
    """A checkpoint as it is read: its tensors, each with the source of its bytes, and its config.

    `dequantised` counts the tensors that are scaled 8-bit floats in the files, and bfloat16 here.
    """

    tensors: Sequence[tuple[TensorInfo, ByteSource]]
    config: Mapping[str, Any] | None
    dequantised: int


def present(
    label: str, config: Mapping[str, Any] | None, tensors: Sequence[tuple[TensorInfo, ByteSource]]
) -> Presented:
    """The tensors of a checkpoint, those that are scaled 8-bit floats as bfloat16, without their scales.

    Raises QuantisedRefused for other quantised weights, BadCheckpoint for scales that do not fit.
    """
    settings = _settings(config)
    method = _method(settings)
    # A model has few last parts of names, and may have 100,000 tensors.
    parts = {info.name[info.name.rfind(".") + 1 :] for info, _ in tensors}
    scaled: dict[str, str] = {}
    if method is not None or _suspicious(parts):
        infos = {info.name: info for info, _ in tensors}
        scaled = {name: f"{name}{_SCALE}" for name in infos if f"{name}{_SCALE}" in infos}
        traced = _traced(parts, infos)
        if traced is None and method == "fp8":
            _refuse_without_scale(label, infos, scaled)
        elif traced is not None or (method is not None and not scaled and _holds_codes(infos.values())):
            raise _refused(label, traced or method or "", infos)
    if not scaled:
        return Presented(tensors, config, 0)
    block = _block_of(settings, label)
    sources = {info.name: (info, source) for info, source in tensors}
    scales = set(scaled.values()) | {
        f"{name.removesuffix('.weight')}{end}" for name in scaled for end in _ACTIVATION_SCALES
    }
    found: list[tuple[TensorInfo, ByteSource]] = []
    for info, source in tensors:
        if info.name in scaled:
            dequantised = _Dequantised(info, source, *sources[scaled[info.name]], block)
            found.append((dequantised.info, dequantised))
        elif info.name not in scales:
            found.append((info, source))
    plain = None if config is None else {key: value for key, value in config.items() if key != _CONFIG_KEY}
    return Presented(found, plain, len(scaled))


def refuse_gguf(label: str) -> QuantisedRefused:
    """The error of weights in a GGUF file."""
    return QuantisedRefused(
        f"{label} is a GGUF file: its weights are codes with scales, of which no exact delta can be taken",
        cause=_CAUSE,
        hint="take the safetensors checkpoint that it was made from, and convert the result after deltareg apply",
        method="GGUF",
    )


def _settings(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    found = (config or {}).get(_CONFIG_KEY)
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def _method(settings: Mapping[str, Any]) -> str | None:
    found = settings.get("quant_method")
    return found.lower() if isinstance(found, str) and found else None


def _suspicious(parts: Set[str]) -> bool:
    traces = {part for _, some in _TRACES for part in some}
    return not traces.isdisjoint(parts) or any(part.endswith((_SCALE, "_blocks")) for part in parts)


def _traced(parts: Set[str], infos: Mapping[str, TensorInfo]) -> str | None:
    """The method that the tensors' names give away."""
    if "qweight" in parts:
        return "gptq" if "g_idx" in parts else "awq"
    for method, traces in _TRACES[1:]:
        if not parts.isdisjoint(traces):
            return method
    blocks = [name for name in infos if name.endswith("_blocks") and infos[name].dtype == "U8"]
    return "mxfp4" if any(f"{name.removesuffix('_blocks')}_scales" in infos for name in blocks) else None


def _holds_codes(infos: Iterable[TensorInfo]) -> bool:
    """Whether any matrix is of a dtype that codes have: a config may speak of a quantisation that is undone."""
    return any(info.dtype in _CODE_DTYPES and len(info.shape) >= 2 for info in infos)


def _refused(label: str, method: str, infos: Mapping[str, TensorInfo]) -> QuantisedRefused:
    called = _METHODS.get(method, method)
    examples = [name for name, info in infos.items() if info.dtype in _CODE_DTYPES][:_SHOWN]
    return QuantisedRefused(
        f"{label} is quantised with {called}: its weights are codes with scales, of which no exact delta can be taken",
        cause=_CAUSE + (f"; codes are in {', '.join(examples)}" if examples else ""),
        hint="use the checkpoint that it was made from, and quantise the result after deltareg apply",
        method=called,
    )


# --- scaled 8-bit floats ------------------------------------------------------------------------------------------


def _refuse_without_scale(label: str, infos: Mapping[str, TensorInfo], scaled: Mapping[str, str]) -> None:
    bare = [name for name, info in infos.items() if info.dtype == "F8_E4M3" and name not in scaled]
    if bare:
        raise BadCheckpoint(
            f"{label} has no scale for {len(bare)} tensors of 8-bit floats: {', '.join(bare[:_SHOWN])}",
            cause=f"config.json says that weights are scaled; {bare[0]}{_SCALE} is missing",
            hint="fetch the checkpoint again; scales of other names are not read: convert it to bfloat16 then",
            tensor=bare[0],
        )


def _block_of(settings: Mapping[str, Any], label: str) -> tuple[int, int]:
    found = settings.get("weight_block_size")
    if found is None:
        return _BLOCK
    sides = cast("Sequence[object]", found) if isinstance(found, list | tuple) else ()
    whole = [side for side in sides if type(side) is int and 1 <= side <= _LARGEST_BLOCK]
    if len(sides) != 2 or len(whole) != 2:
        raise BadCheckpoint(
            f"config.json of {label} has the weight_block_size {found!r:.80}",
            hint="it is two sizes, such as [128, 128]",
        )
    return whole[0], whole[1]


class _Dequantised:
    """The bytes of a matrix of scaled 8-bit floats as bfloat16, from those of its codes and scales.

    weight[i, j] = bfloat16(float32(code[i, j]) · scale[i // b₀, j // b₁]), rounded once, to even: `weight_dequant` of
    DeepSeek-V3's inference code (arXiv 2412.19437, 3.3). One scale may stand for all.
    """

    def __init__(
        self, info: TensorInfo, codes: ByteSource, scale: TensorInfo, scales: ByteSource, block: tuple[int, int]
    ) -> None:
        self._stored = info
        self._codes = codes
        self._scale = scale
        self._scales = scales
        self._lock = threading.Lock()
        self._read: NDArray[Any] | None = None
        self.name = codes.name
        self.info = replace(info, dtype="BF16", end=info.start + 2 * info.elements)
        self.size = self.info.end
        if info.dtype != "F8_E4M3" or len(info.shape) != 2:
            raise self._wrong(
                f"is {info.dtype} {list(info.shape)}; scaled tensors are read if they are F8_E4M3 matrices"
            )
        self._block = block if scale.elements > 1 else (max(1, info.shape[0]), max(1, info.shape[1]))
        due = tuple(math.ceil(side / step) for side, step in zip(info.shape, self._block, strict=True))
        fits = scale.shape == due or (scale.elements == 1 and due in ((1, 1), ()))
        if not fits or scale.dtype not in _SCALE_WIDTHS:
            raise self._wrong(f"has scales {scale.dtype} {list(scale.shape)} instead of F32 {list(due)}")

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on. Raises BadHeader, BadCheckpoint."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises BadHeader, BadCheckpoint."""
        view = bytes_of(buffer)
        if not len(view):
            return
        at = offset - self.info.start
        first, last = at // 2, -(-(at + len(view)) // 2)
        bits = self._elements(first, last)
        view[:] = bytes_of(bits)[at - 2 * first :][: len(view)]

    def close(self) -> None:
        """Nothing is held but what the file's own sources hold."""

    def _elements(self, first: int, last: int) -> NDArray[Any]:
        """The bits of the elements from `first` to `last`, (last − first,) uint16."""
        # Here and not at the top: what only reads headers loads no numpy.
        import numpy as np

        columns = self._stored.shape[1]
        start, stop = first // columns, -(-last // columns)
        codes = np.zeros((stop - start) * columns, np.uint8)
        within = slice(first - start * columns, last - start * columns)
        self._codes.read_into(self._stored.start + first, codes[within])
        values = _numbers()[codes].reshape(stop - start, columns)
        scales = self._all_scales()
        rows, wide = self._block
        for band in range(start // rows, -(-stop // rows)):
            lines = slice(max(0, band * rows - start), (band + 1) * rows - start)
            with np.errstate(over="ignore", invalid="ignore"):
                values[lines] *= np.repeat(scales[band], wide)[:columns]
        bits = values.reshape(-1)[within].view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

    def _all_scales(self) -> NDArray[Any]:
        import numpy as np

        with self._lock:
            if self._read is None:
                raw = self._scales.read(self._scale.start, self._scale.nbytes)
                if self._scale.dtype == "BF16":
                    scales = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
                else:
                    scales = np.frombuffer(raw, np.float32)
                if not (np.isfinite(scales) & (scales > 0)).all():
                    raise self._wrong("has a scale that is no positive number")
                self._read = scales.reshape(-(-self._stored.shape[0] // self._block[0]), -1)
            return self._read

    def _wrong(self, what: str) -> BadCheckpoint:
        return BadCheckpoint(
            f"{self._stored.name} of {self.name} {what}",
            hint="fetch the checkpoint again, or convert it to bfloat16 with the program that made it",
            tensor=self._stored.name,
        )


_NUMBERS: list[Any] = []


def _numbers() -> NDArray[Any]:
    """The number of each code of F8_E4M3 (arXiv 2209.05433, table 1), (256,) float32."""
    if not _NUMBERS:
        import numpy as np

        codes = np.arange(256)
        exponents, fractions = codes >> 3 & 15, codes & 7
        sizes = np.where(exponents == 0, fractions * 2.0**-9, (8 + fractions) * 2.0 ** (exponents - 10.0))
        sizes = np.where(codes & 127 == 127, np.nan, sizes)
        _NUMBERS.append(np.where(codes & 128, -sizes, sizes).astype(np.float32))
    return _NUMBERS[0]
