"""What is read and written in one transaction: functions of a connection, without HTTP and without storage."""

from __future__ import annotations
