"""Every error that deltareg raises on purpose.

One class is one fault that a user can meet: it has a stable `code`, the exit status of the command line and a
docstring. `docs/errors.md` is generated from the docstrings, whose first paragraph says what happened and whose second
says what to do, so a new class here is documented by the act of writing it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar

__all__ = [
    "AdapterRefused",
    "BadAdapter",
    "BadArchive",
    "BadCheckpoint",
    "BadConfig",
    "BadEvaluation",
    "BadHeader",
    "BadLock",
    "BadManifest",
    "BadMergeConfig",
    "BadName",
    "BadRecipe",
    "BadRecord",
    "BucketUnavailable",
    "Busy",
    "ChannelMoved",
    "CheckpointNotFound",
    "Conflict",
    "DeltaregError",
    "DeviceFull",
    "DigestMismatch",
    "DiskFull",
    "EvaluationFailed",
    "HubUnavailable",
    "InvalidArgument",
    "LicenceRefused",
    "LockStale",
    "NetworkFilesystem",
    "NotAllowed",
    "NotFound",
    "NotHomologous",
    "NotReproduced",
    "NotSignedIn",
    "NothingFits",
    "OutputDiffers",
    "OutputExists",
    "PickleRefused",
    "QuantisedRefused",
    "QuotaExceeded",
    "RankLost",
    "RemoteUnavailable",
    "SignatureInvalid",
    "SignatureMissing",
    "SignatureUntrusted",
    "SignersChanged",
    "TooLarge",
    "TooManyRequests",
    "UnsupportedFormat",
    "UsageError",
    "VersionExists",
    "all_errors",
    "translate_os_errors",
]


class DeltaregError(Exception):
    """Something failed that has no code of its own.

    Read the message; if it does not say enough, run `deltareg doctor` and report what it prints.
    """

    code: ClassVar[str] = "DR0001"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None, **data: object) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint
        self.data = data

    def as_dict(self) -> dict[str, object]:
        """The error as the `--json` output has it."""
        return {
            "code": self.code,
            "message": self.message,
            "cause": self.cause,
            "hint": self.hint,
            "data": {
                key: value if isinstance(value, (str, int, float, list, dict, type(None))) else str(value)
                for key, value in self.data.items()
            },
        }


# --- 1: failed ----------------------------------------------------------------------------------------------------


class NotFound(DeltaregError):
    """No delta has this name, version, channel or digest in the registry that was asked.

    Run `deltareg list` to see what is there, or `deltareg pull` to bring the delta from a remote.
    """

    code = "DR0002"


class CheckpointNotFound(DeltaregError):
    """The path or name does not lead to a checkpoint: the hub has no such model or revision, the object store no such
    bucket or prefix.

    Give a directory that holds `model.safetensors` (or shards with `model.safetensors.index.json`), or one
    `.safetensors` file.
    """

    code = "DR0003"


class DiskFull(DeltaregError):
    """The disk has no room for what was being written. No half of it is visible.

    Free space, or name an output or a `DELTAREG_HOME` on a larger disk, and run the command again.
    """

    code = "DR0004"


class Busy(DeltaregError):
    """Another process holds the lock of this registry.

    Wait until it ends and run the command again.
    """

    code = "DR0005"


class NetworkFilesystem(DeltaregError):
    """The catalog's database would lie on a network file system, where SQLite's write-ahead log corrupts.

    Set `DELTAREG_HOME` to a directory on a local disk; share deltas through a remote instead.
    """

    code = "DR0006"


class ChannelMoved(DeltaregError):
    """A channel points elsewhere than the change of it expected: somebody moved it in between.

    Look at where it points now, and move it again if that is still right.
    """

    code = "DR0007"


class RankLost(DeltaregError):
    """Of several processes that work on one output, another one failed, or ended without a word.

    Its own message, or what the launcher says of it, tells why. Run the same command again; with `--resume` it goes on
    with what was finished.
    """

    code = "DR0008"


class DeviceFull(DeltaregError):
    """The memory of the device that was to compute does not suffice, even for the smallest parts.

    See with `nvidia-smi` who else uses it, name another device, or leave `--device` out: the processor's result is the
    same.
    """

    code = "DR0009"


class LockStale(DeltaregError):
    """The lock was made for another recipe than the one beside it: the recipe was changed, or the lock is missing.

    Run `deltareg lock`, look at what changed, and commit `deltareg.lock` with the recipe.
    """

    code = "DR0010"


class EvaluationFailed(DeltaregError):
    """The command or function that was to evaluate a model failed, took too long, or gave no numbers.

    The cause is what it said itself. Run it by hand on a checkpoint of `deltareg build`; a sweep with `--out` goes on
    where it stopped.
    """

    code = "DR0011"


# --- 2: usage -----------------------------------------------------------------------------------------------------


class UsageError(DeltaregError):
    """The command was called in a way that cannot work.

    Read the message and `deltareg COMMAND --help`.
    """

    code = "DR0100"
    exit_code = 2


class InvalidArgument(UsageError):
    """An argument has a value that is not allowed, such as a weight that is no finite number.

    The message names the argument and what it takes.
    """

    code = "DR0101"


class BadName(UsageError):
    """A name, version, channel or digest is not written as deltareg's names are, a model's not as the hub's are, or a
    place's not as those of object stores are.

    Write `namespace/name:1.2.3`, `namespace/name:channel` or `namespace/name@sha256:…`: lower-case letters and digits,
    single `.`, `_` or `-` between them; versions are SemVer without build metadata. A model on the hub is
    `hf://org/name` or `hf://org/name@revision`, a checkpoint in an object store `s3://bucket/prefix`,
    `gs://bucket/prefix` or `az://container/prefix`.
    """

    code = "DR0102"


class BadConfig(UsageError):
    """`deltareg.toml` or a `DELTAREG_…` variable has a value that deltareg does not understand.

    Mend the file and key that the message names.
    """

    code = "DR0103"


class OutputExists(UsageError):
    """The output exists already, or is one of the inputs.

    Choose another `-o`, or remove the old output first.
    """

    code = "DR0104"


class PickleRefused(UsageError):
    """The checkpoint is stored as pickle (`.bin`, `.pt`, `.pth`, `.ckpt`), which can run code when it is read.

    Convert it to safetensors on a machine where you trust it, with the command that the message gives.
    """

    code = "DR0105"


class BadRecipe(UsageError):
    """The recipe in `deltareg.toml` is not what a recipe can be: an unknown key, a wrong type, no range of versions.

    Mend the keys that the message names; `docs/recipes.md` lists them all.
    """

    code = "DR0106"


class BadMergeConfig(UsageError):
    """A merge configuration of mergekit says something that has no meaning here, such as slices or experts.

    The message names the line and the reason. Take it out, or do that part with mergekit.
    """

    code = "DR0107"


class BadEvaluation(UsageError):
    """A file is neither results of lm-evaluation-harness nor a table of them, or a value in it is no number.

    The message says in which file, and where in it. `docs/transfer.md` shows the formats.
    """

    code = "DR0108"


# --- 3: incompatible ----------------------------------------------------------------------------------------------


class NotHomologous(DeltaregError):
    """Two checkpoints, or a delta and its target, do not share one parameter space.

    The message names every tensor that differs. Use a target of the base's family and size.
    """

    code = "DR0200"
    exit_code = 3


class UnsupportedFormat(DeltaregError):
    """The artifact, store or file has a format version or a data type that this deltareg does not know.

    Install a newer deltareg, or ask the publisher for an older format.
    """

    code = "DR0201"
    exit_code = 3


class QuantisedRefused(DeltaregError):
    """The checkpoint's weights are codes with scales (GPTQ, AWQ, bitsandbytes, GGUF …), not numbers.

    Use the checkpoint that it was made from, and quantise the result.
    """

    code = "DR0202"
    exit_code = 3


class AdapterRefused(DeltaregError):
    """The adapter is of a kind that is not imported: another `peft_type`, or a setting that a delta cannot hold.

    The message names the setting. Merge the adapter with peft, and take the delta of base and result: `deltareg diff`.
    """

    code = "DR0203"
    exit_code = 3


class NothingFits(DeltaregError):
    """No set of published versions is what the recipe asks for.

    The message tells which requirement comes from where, which versions were looked at and why each was refused.
    Change the recipe as it proposes, or ask the publisher for a version that fits.
    """

    code = "DR0204"
    exit_code = 3


# --- 4: not allowed -----------------------------------------------------------------------------------------------


class NotAllowed(DeltaregError):
    """The operating system, the remote, the hub or the object store does not let you read or write there.

    Check the permissions of the path in the message, or ask the owner for the right; for a gated model accept its
    conditions and run `hf auth login`; for an object store set its credentials in the environment.
    """

    code = "DR0300"
    exit_code = 4


class VersionExists(NotAllowed):
    """This version is published already, with other bytes. Versions never change.

    Publish under a new version number.
    """

    code = "DR0301"


class NotSignedIn(NotAllowed):
    """The remote wants to know who asks: no token came with the request, or one that it does not know, or no longer.

    Run `deltareg login URL`, or set `DELTAREG_TOKEN`. Ask an owner of the namespace for a token.
    """

    code = "DR0303"


class QuotaExceeded(NotAllowed):
    """The namespace has no room left for these bytes: its quota at the registry is used up.

    Remove versions that nobody needs, or ask an administrator of the registry for a larger quota.
    """

    code = "DR0304"


class TooLarge(NotAllowed):
    """More bytes were sent than the remote takes: a document, a manifest or a blob is too long.

    The message says how many may be sent. Of what can be told in parts, send less at a time.
    """

    code = "DR0305"


class Conflict(NotAllowed):
    """What is there stands against the change: the name is taken, the namespace is not empty, it is the last owner.

    The message says what stands against it. Change that first.
    """

    code = "DR0309"


class LicenceRefused(NotAllowed):
    """The licences of the base and the deltas do not go together, or one of them forbids derivatives.

    Leave the delta out that the message names. If you have the right by other means, say so with `--accept-licence`.
    """

    code = "DR0302"


# --- 5: integrity -------------------------------------------------------------------------------------------------


class DigestMismatch(DeltaregError):
    """Stored or received bytes do not have the digest that names them. They were not used.

    Run `deltareg cache fsck` to find every damaged blob, then `deltareg pull` to fetch it again.
    """

    code = "DR0400"
    exit_code = 5


class BadHeader(DeltaregError):
    """A safetensors file is truncated, corrupt or hostile: its header breaks a rule of the format.

    Fetch the file again from where it came; the message names the file, the tensor and the byte.
    """

    code = "DR0401"
    exit_code = 5


class BadCheckpoint(DeltaregError):
    """A checkpoint's files do not agree: a shard is missing, or index and shards tell different things.

    Fetch the checkpoint again, all of its files.
    """

    code = "DR0402"
    exit_code = 5


class BadManifest(DeltaregError):
    """A manifest, config, inventory or index document is not what its schema says.

    Fetch the artifact again; if it is still refused, its publisher must mend it.
    """

    code = "DR0403"
    exit_code = 5


class BadRecord(DeltaregError):
    """A tensor's record in a pack breaks a rule of the format. Nothing of it was applied.

    Fetch the artifact again; if it is still refused, its publisher must mend it.
    """

    code = "DR0404"
    exit_code = 5


class NotReproduced(DeltaregError):
    """Verification found that base + delta is not post, bit for bit.

    The message names the tensors. Take the delta again from the two checkpoints.
    """

    code = "DR0405"
    exit_code = 5


class BadAdapter(DeltaregError):
    """An adapter's files do not agree: a factor is missing or has another shape than its config and the base say.

    The message names every tensor. Save the adapter again with peft's `save_pretrained`, or name its own base.
    """

    code = "DR0406"
    exit_code = 5


class BadLock(DeltaregError):
    """`deltareg.lock` is not what deltareg wrote: it was edited, cut short, or merged by hand.

    Run `deltareg lock` to write it anew from the recipe, or take it from version control again.
    """

    code = "DR0407"
    exit_code = 5


class OutputDiffers(DeltaregError):
    """An output is not what its lock says: its files were changed, or a rebuild gave other bytes.

    The message names the files, and what of the lock they contradict. Build it again from the lock.
    """

    code = "DR0408"
    exit_code = 5


class SignatureMissing(DeltaregError):
    """A delta that has to be signed is not: no signature of it is stored here, nor at the remote.

    Ask the publisher to sign it (`deltareg sign`). If it was signed after you pulled it, pull it again.
    """

    code = "DR0409"
    exit_code = 5


class SignatureUntrusted(DeltaregError):
    """A delta is signed, but by nobody of those that are trusted.

    The message names who signed. If you trust them too, add their public key to `--signed-by` or to the policy.
    """

    code = "DR0410"
    exit_code = 5


class SignatureInvalid(DeltaregError):
    """A signature does not hold: it is for other bytes or another name, is malformed, or its certificate has expired.

    Do not use the delta before its publisher has explained that, and has signed it anew.
    """

    code = "DR0411"
    exit_code = 5


class SignersChanged(DeltaregError):
    """A server names other keys for a namespace than are remembered, and one of these would have to count.

    Ask the owners of the namespace, by another way than that server, whether the keys are theirs. If they are,
    `deltareg signers accept` remembers them; if not, somebody else speaks in their name.
    """

    code = "DR0413"
    exit_code = 5


class BadArchive(DeltaregError):
    """A file that was to be imported is no archive of deltas, was cut short, or holds what no archive may hold.

    Nothing of it was named. Copy the file again; if it is still refused, export it again where it came from.
    """

    code = "DR0412"
    exit_code = 5


# --- 6: network ---------------------------------------------------------------------------------------------------


class RemoteUnavailable(DeltaregError):
    """The remote does not answer, or its directory is not mounted.

    Check `deltareg remote list` and the connection, and run the command again: what was sent is kept.
    """

    code = "DR0500"
    exit_code = 6


class TooManyRequests(RemoteUnavailable):
    """The remote was asked too often in a short time.

    Wait as long as the message says, and run the command again: what was sent is kept.
    """

    code = "DR0503"


class HubUnavailable(RemoteUnavailable):
    """The Hugging Face Hub could not be reached, or failed.

    Check the connection and run the command again, or download the model first and give its path.
    """

    code = "DR0501"


class BucketUnavailable(RemoteUnavailable):
    """The object store of an `s3://`, `gs://` or `az://` name could not be reached, or failed.

    Check the connection and the endpoint and region in the environment, and run the command again.
    """

    code = "DR0502"


def all_errors() -> list[type[DeltaregError]]:
    """Every error class with a code of its own, ordered by code."""
    found: list[type[DeltaregError]] = [DeltaregError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return sorted((cls for cls in found if "code" in vars(cls)), key=lambda cls: cls.code)


@contextmanager
def translate_os_errors(doing: str, path: os.PathLike[str] | str) -> Generator[None]:
    """Turn an `OSError` of the body into the `DeltaregError` that says what to do about it.

    `doing` completes the sentence "could not …": "write the pack".
    """
    try:
        yield
    except OSError as error:
        where = os.fspath(error.filename) if isinstance(error.filename, str) else os.fspath(path)
        reason = error.strerror or str(error)
        message = f"could not {doing}: {where}: {reason}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                message, cause=reason, hint="free some space or choose another disk, then run this again", path=where
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NotAllowed(message, cause=reason, hint=f"check the permissions of {where}", path=where) from error
        raise DeltaregError(message, cause=reason, path=where) from error
