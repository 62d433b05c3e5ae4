"""`hf://owner`: a registry on the Hugging Face Hub, where each delta has a model repository of its own.

`names.py` tells which repository a delta has, `repository.py` reads and commits its files, `card.py` writes its model
card, and `remote.py` makes a remote of these.
"""

from __future__ import annotations

from deltareg.remote.hub.remote import HubRemote

__all__ = ["HubRemote"]
