"""Frozen settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of the daemon, with its default; sizes in bytes, times in seconds."""

    grant_seconds: float = 120
    resume_seconds: float = 120
    retention_seconds: float = 300
    retention_entries: int = 200_000
    retention_bytes: int = 64 * 1024 * 1024
    tail_bytes: int = 16 * 1024 * 1024
    resume_max_entries: int = 10_000
    position_seconds: float = 25
    idempotency_seconds: float = 600
    reorder_seconds: float = 60
    refetch_per_second: int = 500
    ping_seconds: float = 25
    pong_seconds: float = 10
    stall_seconds: float = 10
    call_seconds: float = 30
    drain_seconds: float = 10
    max_message_bytes: int = 64 * 1024
    max_body_bytes: int = 1024 * 1024
    max_inbox_bytes: int = 256 * 1024
    max_inbox_messages: int = 256
    max_outbox_bytes: int = 1024 * 1024
    max_send_buffer_bytes: int = 256 * 1024
    max_deltas: int = 1_000
    max_items: int = 64
    max_subscriptions: int = 128
    max_filter_nodes: int = 64
    max_filter_depth: int = 8
