"""Dealers: who sees a change."""

from syncserver.dealers.base import Dealer, SubscriptionItem
from syncserver.dealers.broadcast import BroadcastDealer
from syncserver.dealers.filter import FilterDealer
from syncserver.dealers.group import GroupDealer
from syncserver.dealers.keyed import KeyedDealer, SimpleDealer

__all__ = [
    "BroadcastDealer",
    "Dealer",
    "FilterDealer",
    "GroupDealer",
    "KeyedDealer",
    "SimpleDealer",
    "SubscriptionItem",
]
