"""Dealers: who sees a change."""

from syncserver.dealers.base import Dealer, SubscriptionItem

__all__ = ["Dealer", "SubscriptionItem"]
